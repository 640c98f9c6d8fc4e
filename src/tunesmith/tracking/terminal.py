"""What a person at the command line sees on stderr: the product's log lines and its bars.

The product logs through ``logging`` under the name ``tunesmith`` and writes nowhere by itself, so a notebook, a server and a
test decide what becomes of its lines. The command line is the one place that shows them: plain lines, no timestamps, through
the console that also draws the bars, so that neither tears the other. Other people's text is shown with its unseen characters
written out.

Refused: rich's own ``RichHandler``, whose columns of time, level and file break every line at the terminal's width.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from tunesmith.tracking import console, visible

LOGGER = "tunesmith"
LEVELS = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class ConsoleHandler(logging.Handler):
    """Log records as lines of a rich console."""

    def __init__(self, target: Console):
        super().__init__()
        self._console = target

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            line = Text(visible(self.format(record)), STYLES.get(record.levelno, ""))
            self._console.print(line, soft_wrap=True)
        except OSError:  # a closed pipe: logging's own answer, which does not end the run
            self.handleError(record)


def set_verbosity(verbosity: int) -> None:
    """-1 shows warnings and errors, 0 what the product says by itself, 1 what helps to find a fault."""
    logging.getLogger(LOGGER).setLevel(LEVELS[max(-1, min(1, verbosity))])


@contextmanager
def session() -> Iterator[None]:
    """Show the product's lines on stderr while the block runs; the command line is one such block."""
    logger = logging.getLogger(LOGGER)
    handler, level = ConsoleHandler(console), logger.level
    logger.addHandler(handler)
    set_verbosity(0)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
