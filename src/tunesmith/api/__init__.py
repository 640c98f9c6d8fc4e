"""One function per verb, for programs and for the command line.

``examples.py`` holds what comes before a model is trained (check, convert, preview, data, render), ``verbs.py`` what
follows, ``evaluation.py`` the arms and the verdict, ``export.py`` the deployed forms, ``parity.py`` their proof, ``engines.py``
who answers, ``stage.py`` the books that all keep.
"""

from tunesmith.api.advice import advise
from tunesmith.api.curve import learning_curve
from tunesmith.api.evaluation import evaluate, verdict
from tunesmith.api.examples import check, check_page, convert, data, preview, render
from tunesmith.api.export import export, export_lines
from tunesmith.api.forgetting import forgetting
from tunesmith.api.lines import check_lines, reading_lines
from tunesmith.api.parity import parity, parity_lines
from tunesmith.api.seeds import seeds
from tunesmith.api.sweep import sweep, sweep_lines
from tunesmith.api.verbs import accept_base, chat, open_run, report, run, train

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
    "export_lines",
    "forgetting",
    "learning_curve",
    "open_run",
    "parity",
    "parity_lines",
    "preview",
    "reading_lines",
    "render",
    "report",
    "run",
    "seeds",
    "sweep",
    "sweep_lines",
    "train",
    "verdict",
]
