"""One function per verb, for programs and for the command line.

``examples.py`` holds what comes before a model is trained (check, convert, preview, data, render), ``verbs.py`` what
follows, ``evaluation.py`` the arms and the verdict, ``engines.py`` who answers, ``stage.py`` the books that all keep.
"""

from tunesmith.api.advice import advise
from tunesmith.api.curve import learning_curve
from tunesmith.api.evaluation import evaluate, verdict
from tunesmith.api.examples import check, check_page, convert, data, preview, render
from tunesmith.api.forgetting import forgetting
from tunesmith.api.lines import check_lines, reading_lines
from tunesmith.api.seeds import seeds
from tunesmith.api.verbs import chat, export, open_run, report, run, train

__all__ = [
    "advise",
    "chat",
    "check",
    "check_lines",
    "check_page",
    "convert",
    "data",
    "evaluate",
    "export",
    "forgetting",
    "learning_curve",
    "open_run",
    "preview",
    "reading_lines",
    "render",
    "report",
    "run",
    "seeds",
    "train",
    "verdict",
]
