"""One function per verb, for programs and for the command line.

``examples.py`` holds what comes before a model is trained (check, convert, preview, data, render), ``verbs.py`` what
follows, ``evaluation.py`` the arms and the verdict, ``export.py`` the deployed forms, ``parity.py`` their proof, ``engines.py``
who answers, ``stage.py`` the books that all keep.
"""

from tunesmith.pipeline.advice import advise
from tunesmith.pipeline.curve import learning_curve
from tunesmith.pipeline.evaluation import evaluate, verdict
from tunesmith.pipeline.examples import check, check_page, convert, data, preview, render
from tunesmith.pipeline.export import export
from tunesmith.pipeline.forgetting import forgetting
from tunesmith.pipeline.lines import check_lines, reading_lines
from tunesmith.pipeline.parity import parity
from tunesmith.pipeline.seeds import seeds
from tunesmith.pipeline.sweep import sweep
from tunesmith.pipeline.verbs import accept_base, chat, open_run, report, run, train

__all__ = [
    "accept_base",
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
    "parity",
    "preview",
    "reading_lines",
    "render",
    "report",
    "run",
    "seeds",
    "sweep",
    "train",
    "verdict",
]
