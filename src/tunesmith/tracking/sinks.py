"""Where events go: to every sink that is attached around the code that emits them.

A sink is anything with ``write(event)``: a run's ``events.jsonl``, the terminal, a tracker. Which ones listen is a property of
the call, not of the process (a context variable), so two runs in one process keep their events apart, and a call that nobody
listens to costs next to nothing. Stages nest: a run inside a run (another seed, a share of the train part) has its own log,
where its stage is ``train``, and the outer log calls the same event ``seeds/train``.

A thread that is started within has no sinks of its own; a bar takes them along (``progress.py``).

Refused: a module-wide list of sinks, which every test and every second run in a process shares; a bus with topics and queues,
where a slow listener is a lost event.
"""

import dataclasses
import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from tunesmith.rundir.records.events import Event, StageEnd, StageStart, WarningLine
from tunesmith.tracking.text import visible

LOGGER = "tunesmith"


class Sink(Protocol):
    """Takes events, in order."""

    def write(self, event: Event) -> None:
        """Take one event; it must not block for long."""
        ...


@dataclass(frozen=True)
class Audience:
    """The sinks around a piece of code, each with the number of stages that were open when it was attached."""

    sinks: tuple[tuple[Sink, int], ...] = ()
    stages: tuple[str, ...] = ()

    def tell(self, event: Event) -> None:
        """Give an event to each sink, with the names of the stages that were begun since it was attached."""
        for sink, depth in self.sinks:
            sink.write(dataclasses.replace(event, stage="/".join(self.stages[depth:])))


_NOBODY = Audience()
_AUDIENCE: ContextVar[Audience] = ContextVar("audience", default=_NOBODY)


def audience() -> Audience:
    """The sinks that listen here."""
    return _AUDIENCE.get()


def emit(event: Event) -> None:
    """Give an event to all sinks that listen here; its ``stage`` is filled in."""
    _AUDIENCE.get().tell(event)


@contextmanager
def attached(*sinks: Sink) -> Generator[None]:
    """Let ``sinks`` listen to what is emitted in the block, with those that listen already."""
    outer = _AUDIENCE.get()
    inner = tuple((sink, len(outer.stages)) for sink in sinks)
    token = _AUDIENCE.set(Audience((*outer.sinks, *inner), outer.stages))
    try:
        yield
    finally:
        _AUDIENCE.reset(token)


class stage:
    """``with stage("train"):``: its start and end are events, and events within carry its name.

    Args:
        reason: why it is run.
    """

    def __init__(self, name: str, reason: str = ""):
        self._name, self._reason = name, reason

    def __enter__(self) -> None:
        outer = _AUDIENCE.get()
        self._token = _AUDIENCE.set(Audience(outer.sinks, (*outer.stages, self._name)))
        self._start = time.monotonic()
        emit(StageStart(reason=self._reason))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        outcome = "done" if error is None else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            message = "" if error is None else visible(str(error))
            emit(StageEnd(outcome=outcome, seconds=time.monotonic() - self._start, error=message))
        finally:
            _AUDIENCE.reset(self._token)


class WarningEvents(logging.Handler):
    """Makes warnings that are logged events of the run in which they were."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Emit one record as an event."""
        emit(WarningLine(logger=record.name, message=visible(record.getMessage())))
