"""One function per verb, for programs and for the command line.

``examples.py`` holds what comes before a model is trained (check, convert, preview, data, render), ``verbs.py`` what
follows, ``stage.py`` the books that all of them keep.
"""

from tunesmith.api.examples import check, check_page, convert, data, preview, render
from tunesmith.api.lines import check_lines, reading_lines
from tunesmith.api.verbs import chat, evaluate, export, open_run, report, run, train, verdict

__all__ = [
    "chat",
    "check",
    "check_lines",
    "check_page",
    "convert",
    "data",
    "evaluate",
    "export",
    "open_run",
    "preview",
    "reading_lines",
    "render",
    "report",
    "run",
    "train",
    "verdict",
]
