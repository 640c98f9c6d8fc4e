"""How far a long piece of work is: the code that works counts, the sinks show.

A bar is a series of ``Progress`` events: one when it opens, at most one a second while it counts, and a last one when its block
is left, however that happens. What they look like is the terminal's matter.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress

from tunesmith.errors import TunesmithError
from tunesmith.rundir.records.events import Progress
from tunesmith.tracking.sinks import audience

SECONDS = 1.0  # between two events of a bar


class Bar:
    """Counts one piece of work: ``advance`` after each unit, with the figures to show beside it."""

    def __init__(self, title: str, total: int, done: int, clock: Callable[[], float]):
        self._title, self._total, self._done = title, total, done
        self._note = ""
        self._clock, self._next = clock, clock() + SECONDS
        self._audience = audience()
        self._emit()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count ``steps`` done; ``note`` (loss, tokens/s) replaces the last one."""
        self._done += steps
        self._note = note
        if (now := self._clock()) >= self._next:
            self._next = now + SECONDS
            self._emit()

    def close(self) -> None:
        """Say the last state; called once, by ``progress``."""
        self._emit(is_last=True)

    def _emit(self, is_last: bool = False) -> None:
        self._audience.tell(Progress(title=self._title, done=self._done, total=self._total, note=self._note, is_last=is_last))


@contextmanager
def progress(title: str, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> Generator[Bar]:
    """A bar over a block of work.

    Args:
        title: a few words; no bar of the same title may be open.
        total: units of work.
        done: of them, by an earlier call.
        clock: seconds; for tests.
    """
    bar = Bar(title, total, done, clock)
    is_whole = False
    try:
        yield bar
        is_whole = True
    finally:
        # A disk that is full has no room for the bar's last line either; what filled it is the error to hear.
        with nullcontext() if is_whole else suppress(TunesmithError):
            bar.close()
