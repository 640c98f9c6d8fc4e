"""What a person at the command line sees on stderr: the product's log lines and its bars.

The product logs through ``logging`` under the name ``tunesmith`` and writes nowhere by itself, so a notebook, a server and a
test decide what becomes of its lines. The command line is the one place that shows them: plain lines, no timestamps, through
the console that also draws the bars, so that neither tears the other. Other people's text is shown with its unseen characters
written out. Where stderr is no terminal (a log file, CI), a bar is a line at most every ten seconds.

Refused: rich's own ``RichHandler``, whose columns of time, level and file break every line at the terminal's width.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from tunesmith.formatting import duration
from tunesmith.rundir.records.events import Event
from tunesmith.rundir.records.events import Progress as ProgressEvent
from tunesmith.tracking.sinks import LOGGER, Sink, attached
from tunesmith.tracking.text import visible

LEVELS = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}
SECONDS = 10.0  # between two lines of progress where there is no terminal
WIDTH = 120  # where there is no terminal


class ConsoleHandler(logging.Handler):
    """Log records as lines of a rich console."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            line = Text(visible(self.format(record)), STYLES.get(record.levelno, ""))
            self._console.print(line, soft_wrap=True)
        except OSError:  # a closed pipe: logging's own answer, which does not end the run
            self.handleError(record)


class DrawnBars:
    """Bars that are redrawn in place: count, note, elapsed time and time left."""

    def __init__(self, console: Console):
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def write(self, event: Event) -> None:
        """Draw the bar of an event; other events are shown by their log lines."""
        if not isinstance(event, ProgressEvent):
            return
        if self._progress is None:
            self._progress = Progress(*_columns(), console=self._console, refresh_per_second=2, redirect_stdout=False)
            self._progress.start()
        if event.title not in self._tasks:
            self._tasks[event.title] = self._progress.add_task(
                event.title, total=event.total, completed=event.done, note=event.note
            )
        self._progress.update(self._tasks[event.title], completed=event.done, note=event.note)
        if event.is_last:
            self._progress.stop_task(self._tasks.pop(event.title))
        if not self._tasks:
            self.close()

    def close(self) -> None:
        """Leave the bars as they stand."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}


class ProgressLines:
    """Bars where nothing can be redrawn: a line at most every ten seconds, of the bar that moved last."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console, self._clock = console, clock
        self._starts: dict[str, tuple[float, int]] = {}  # when a bar opened, and at which count
        self._next = 0.0  # no line before

    def write(self, event: Event) -> None:
        """Print the state of a bar, where the last line is long enough ago."""
        if not isinstance(event, ProgressEvent):
            return
        now = self._clock()
        if not self._starts:
            self._next = max(self._next, now + SECONDS)
        start, before = self._starts.setdefault(event.title, (now, event.done))
        if event.is_last:
            self._starts.pop(event.title)
        if now >= self._next:
            self._next = now + SECONDS
            elapsed, done = now - start, event.done - before
            left = (
                f", {duration(elapsed / done * (event.total - event.done))} left" if done and event.done < event.total else ""
            )
            note = f"  {event.note}" if event.note else ""
            line = f"{event.title}: {event.done:,}/{event.total:,}{note}  {duration(elapsed)}{left}"
            self._console.print(Text(visible(line)), soft_wrap=True)


def set_verbosity(verbosity: int) -> None:
    """-1 shows warnings and errors, 0 also progress and what the product says by itself, 1 what helps to find a fault."""
    logging.getLogger(LOGGER).setLevel(LEVELS[max(-1, min(1, verbosity))])


@contextmanager
def session() -> Generator[None]:
    """Show the product's lines and bars on stderr while the block runs; the command line is one such block."""
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDTH)
    logger = logging.getLogger(LOGGER)
    handler, level = ConsoleHandler(console), logger.level
    logger.addHandler(handler)
    set_verbosity(0)
    bars = DrawnBars(console)
    try:
        with attached(_WhileInfoIsShown(bars if console.is_terminal else ProgressLines(console))):
            yield
    finally:
        bars.close()
        logger.removeHandler(handler)
        logger.setLevel(level)


class _WhileInfoIsShown:
    """Passes events on unless -q was given, an option that is read when the session is already open."""

    def __init__(self, bars: Sink):
        self._bars = bars

    def write(self, event: Event) -> None:
        if logging.getLogger(LOGGER).isEnabledFor(logging.INFO):
            self._bars.write(event)


def _columns() -> tuple[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn | TimeRemainingColumn, ...]:
    return (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
