"""Streams and events of the device that is not there, and the races between them.

A stream counts what it does with memory that another stream has used too, and knows how far each of the others was when it last
waited for it. Where it touches what another stream has written since then, or writes what another still reads, is a race.
Of the main stream's own memory nothing is kept until another stream uses it. A Triton kernel reads its tensors, and writes
those that its source says (``triton_writes.py``).
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


class Stream:
    """In the place of ``torch.cuda.Stream``: how far it is, and how far others were when it last waited for them."""

    def __init__(self, *_: Any, **__: Any):
        self.at = 0
        self.seen: dict[Stream, int] = {}

    def wait_event(self, event: "Event") -> None:
        for other, at in event.stamp.items():
            self.seen[other] = max(at, self.seen.get(other, 0))

    def record_event(self) -> "Event":
        event = Event()
        event.record(self)
        return event

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())


class Event:
    """In the place of ``torch.cuda.Event``: the host's clock, and what its stream had done and seen."""

    def __init__(self, **_: Any):
        self._at = 0.0
        self.stamp: dict[Stream, int] = {}

    def record(self, stream: Stream | None = None) -> None:
        self._at = time.perf_counter()
        stream = stream or STREAMS.current
        self.stamp = {**stream.seen, stream: stream.at}

    def synchronize(self) -> None:
        STREAMS.waited("event")

    def elapsed_time(self, end: "Event") -> float:
        return max(1e3 * (end._at - self._at), 1e-6)


@dataclass
class _Uses:
    """How far each stream was when it last wrote, or read, a piece of memory."""

    written: dict[Stream, int] = field(default_factory=dict)
    read: dict[Stream, int] = field(default_factory=dict)


class Streams:
    """Which stream is current, and what each has done with memory that they share.

    Attributes:
        waited: called where the host waits for an event.
    """

    def __init__(self) -> None:
        self._main, self._threads = Stream(), threading.local()
        self.waited: Callable[[str], None] = lambda what: None
        self._shared: dict[int, _Uses] = {}

    @property
    def current(self) -> Stream:
        """Of the moment, which each thread has for itself."""
        return getattr(self._threads, "stream", self._main)

    @current.setter
    def current(self, stream: Stream) -> None:
        self._threads.stream = stream

    def touched(self, keys: Iterable[int], writes: bool) -> int:
        """Memory is read or written on the current stream; how many pieces of it another stream is not done with."""
        here, races = self.current, 0
        for key in keys:
            if here is self._main and key not in self._shared:
                continue
            here.at += 1
            uses = self._shared.setdefault(key, _Uses())
            before = [*uses.written.items(), *(uses.read.items() if writes else ())]
            races += any(here.seen.get(other, 0) < at for other, at in before if other is not here)
            if writes:
                self._shared[key] = _Uses(written={here: here.at})
            else:
                uses.read[here] = here.at
        return races

    def forget(self, key: int) -> None:
        """Other memory has come to lie where this was."""
        self._shared.pop(key, None)

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """In the place of ``torch.cuda.stream``."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


STREAMS = Streams()
