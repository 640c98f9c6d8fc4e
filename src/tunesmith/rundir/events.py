"""``events.jsonl``: everything that happened in a run, in order; appended to by the process that works, read by all others.

A line is one event (``records/events.py``), written by a single ``write`` on a file opened for appending: a reader sees whole
lines or, after a kill or on a full disk, one torn line at the end, which it leaves alone and which the next writer cuts off.
So a page may read while a run writes, and any number of them.

Refused: a socket or a database, which nobody can read after the fact with ``tail -f``; an fsync a line (events tell what
happens, nothing is decided by them: a power cut may cost the last ones). Cost: a file opened and closed an event, some 20 us,
at a few events a second.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import RunError
from tunesmith.rundir.atomic import cut_torn_line
from tunesmith.rundir.records.events import Event, ProcessStart, parse_event


class EventLog:
    """Appends events to a file; a sink for ``tracking.attached``."""

    def __init__(self, path: Path):
        self.path = path
        self._is_begun = False

    def write(self, event: Event) -> None:
        """Append an event, before the first one a ``ProcessStart``.

        Raises:
            RunError: the disk is full, or the place cannot be written.
        """
        try:
            with self.path.open("a+b", buffering=0) as file:
                if not self._is_begun:
                    cut_torn_line(file.fileno())
                    _append(file.fileno(), ProcessStart(at=event.at, process=os.getpid()))
                    self._is_begun = True
                _append(file.fileno(), event)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}", "make room, or mend the permissions") from error


def _append(descriptor: int, event: Event) -> None:
    line = json.dumps(event.to_json(), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
    nbytes = os.write(descriptor, line)
    if nbytes < len(line):  # the disk is full: the second write says so, and what is there of the line is cut off
        try:
            os.write(descriptor, line[nbytes:])
        except OSError:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - nbytes)
            raise


class LineReader:
    """Reads whole lines of a file that is being appended to, bit by bit, and notices that it is another file.

    Attributes:
        offset: bytes read so far; the end of a line.
        file: which file they were read of, as device and inode; None before there was one.
    """

    def __init__(self, path: Path, offset: int = 0, file: tuple[int, int] | None = None):
        self.path, self.offset, self.file = path, offset, file

    def new(self, most: int = -1) -> tuple[bool, list[bytes]]:
        """Lines that came since the last call; one that has no end yet waits for the next one.

        Another file of the name, one shorter than what was read, or one with no line's end there is read from its start.

        Args:
            most: bytes to read at about; -1 for all.

        Returns:
            Whether the file is read from its start again, and the lines without their ends.
        """
        try:
            with self.path.open("rb") as file:
                is_anew = self._find_place(file)
                file.seek(self.offset)
                block = file.read(most)
                while most > 0 and b"\n" not in block and (more := file.read(most)):  # a line that is longer than that
                    block += more
        except FileNotFoundError:
            return False, []
        whole, newline, _ = block.rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        return is_anew, whole.split(b"\n") if newline else []

    def skip(self) -> None:
        """Pass over all whole lines that are there."""
        while self.new(1 << 20)[1]:
            pass

    def _find_place(self, file: BinaryIO) -> bool:
        """Whether what was read is of another file, or of one that was cut: it is read from its start then."""
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        is_same = identity == self.file and status.st_size >= self.offset
        if is_same and self.offset:
            file.seek(self.offset - 1)
            is_same = file.read(1) == b"\n"
        is_anew = not is_same and self.file is not None
        if not is_same:
            self.offset = 0
        self.file = identity
        return is_anew


class EventReader:
    """Reads a file that is being written, bit by bit."""

    def __init__(self, path: Path):
        self.path = path
        self._lines = LineReader(path)
        self._line = 0

    def new(self) -> list[Event]:
        """Events that came since the last call; a line that has no end yet waits for the next one.

        Another file of the name, or one shorter than what was read, is read from its start: the run was made anew.

        Raises:
            RunError: a line is no event.
        """
        is_anew, lines = self._lines.new()
        if is_anew:
            self._line = 0
        events: list[Event] = []
        for line in lines:
            self._line += 1
            events.append(parse_event(line, f"{self.path}, line {self._line}"))
        return events


def read_events(path: Path) -> list[Event]:
    """All events so far, none where there is no file; a torn last line is left out.

    Raises:
        RunError: a line is no event.
    """
    return EventReader(path).new()


def follow(path: Path, is_over: Callable[[], bool], seconds: float = 0.2) -> Iterator[Event]:
    """All events so far, then each as it comes.

    Args:
        is_over: asked before each look; what was written before it said so is still given.
        seconds: between two looks.

    Raises:
        RunError: a line is no event.
    """
    reader = EventReader(path)
    while True:
        last_look = is_over()
        yield from reader.new()
        if last_look:
            return
        time.sleep(seconds)
