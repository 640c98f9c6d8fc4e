"""Forked processes that take numbered items from one queue, and give their results to the process that forked them.

Two threads of one process that meet at a barrier after every matrix product wait for each other by spinning; where anything
else runs beside them, most of their time goes there (70 tokens/s of two threads, 236 of two processes of one thread on a
two-core machine with a little other work). So on a CPU work is dealt out to processes, each with one thread.

A forked process has all that its parent had, a model of gigabytes too, and a page lies in memory once until somebody writes to
it. So nothing is sent but small messages: the job, the number of an item, the bytes of its result. What is larger lies in
shared memory that the caller made before the first fork (``shared_memory``).

A team is the process that made it and those it forked. All compute. Items are taken from one pipe in the order in which they
are given; a process that something else slows down takes fewer. Longest first, that is the rule of longest processing time
(Graham 1969) with times as they are and not as they were foreseen. Whoever waits sleeps in ``read`` or ``poll``.

Nobody outlives the others: an error in one is raised in the parent, a death is named, and a process whose parent ends, however
that ends, is killed by the kernel (``hardware.die_with``).

Refused: ``multiprocessing`` (its pools pickle, and wait for ever for a process that was killed), starting programs anew (each
loads the model), threads, ``PR_SET_PDEATHSIG`` (see ``hardware``).
"""

import gc
import json
import logging
import mmap
import os
import select
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tunesmith import errors, hardware
from tunesmith.errors import TunesmithError

Work = Callable[[bytes, int], bytes]  # job and item to result
Advance = Callable[[int], None]  # item
Keep = Callable[[int, bytes], None]  # item and its result

TICKET = struct.Struct("<q")
FRAME = struct.Struct("<qQ")  # item, or what else it is; bytes that follow
PRIVATE = struct.Struct("<Q")
END, ERROR = -1, -2
MOST_TICKETS = 4096  # that are given out at once: a pipe holds 64 KB


def obstacle_to_forking() -> str | None:
    """Why this process cannot fork one that computes; None where it can. (torch has its own: ``models/ranks.py``.)"""
    return None if sys.platform == "linux" else f"{sys.platform} has no fork that is safe and ends with its parent"


def shared_memory(size: int) -> mmap.mmap:
    """Zeros that a process shares with all that it forks from then on."""
    return mmap.mmap(-1, max(1, size))


@dataclass
class _Member:
    """A forked process, as its parent sees it."""

    number: int
    pid: int
    jobs: int
    results: int
    lifeline: int
    received: bytearray = field(default_factory=bytearray)
    busy: bool = False
    private: int = 0


class Team:
    """This process and those that it forks, together ``size``. A context manager: at the end of the block they are gone.

    Args:
        size: at least 1; 1 forks nothing and computes the items in the order in which they are given.
        name: of a process, for people: ``training process``.
        work: computes an item; in any of the processes.
        begin: is called once in each forked process.
        error: what is raised where one dies.
        hint: what to do about it, beside what the signal says.
    """

    def __init__(
        self, size: int, name: str, work: Work, begin: Callable[[], None], error: type[TunesmithError], hint: str
    ) -> None:
        self.size, self.name, self._work, self._begin = size, name, work, begin
        self._error, self._hint = error, hint
        self._members: list[_Member] = []
        self._tickets = (-1, -1)
        self._broken = False

    def __enter__(self) -> Self:
        self._tickets = os.pipe()
        try:
            for number in range(1, self.size):
                self._members.append(self._fork(number))
        except OSError as error:
            self.close()
            raise self._error(
                f"{self.name} {len(self._members) + 1} of {self.size} cannot be forked: {error}", self._hint
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Of the forked processes."""
        return [member.pid for member in self._members]

    def run(self, job: bytes, items: Sequence[int], advance: Advance = lambda _: None) -> dict[int, bytes]:
        """Compute all items of a job.

        Args:
            job: what ``work`` needs to know beside the item.
            items: numbers from 0; the longest first, if it is known.
            advance: called in this process with each item as its result arrives.

        Returns:
            The result of each.

        Raises:
            TunesmithError: what ``work`` raised in any of the processes.
            RuntimeError: another error in a forked process, with its traceback.
        """
        assert not self._broken, "a team whose job failed"
        self._broken = True
        results: dict[int, bytes] = {}

        def keep(item: int, result: bytes) -> None:
            results[item] = result
            advance(item)

        for first in range(0, len(items), MOST_TICKETS):
            self._run_some(job, items[first : first + MOST_TICKETS], keep)
        self._broken = False
        return results

    def close(self) -> None:
        """End the forked processes, whatever they do."""
        members, self._members = self._members, []
        for member in members:
            os.kill(member.pid, signal.SIGKILL)
        for member in members:
            os.waitpid(member.pid, 0)
            for end in (member.jobs, member.results, member.lifeline):
                os.close(end)
        for end in self._tickets:
            os.close(end)

    def _run_some(self, job: bytes, items: Sequence[int], keep: Keep) -> None:
        for member in self._members:
            try:
                _write(member.jobs, FRAME.pack(0, len(job)) + job)
            except BrokenPipeError:
                raise self._death_of(member) from None
            member.busy = True
        _write(self._tickets[1], b"".join(TICKET.pack(item) for item in [*items, *[END] * self.size]))
        while (item := self._ticket()) != END:
            keep(item, self._work(job, item))
            self._collect(keep, 0)
        while any(member.busy for member in self._members):
            self._collect(keep, None)
        hardware.note_processes(sum(member.private for member in self._members))

    def _ticket(self) -> int:
        return TICKET.unpack(os.read(self._tickets[0], TICKET.size))[0]

    def _collect(self, keep: Keep, timeout: int | None) -> None:
        """Take what the others have sent; wait for something, or for ``timeout`` milliseconds."""
        waiting = {member.results: member for member in self._members if member.busy}
        poll = select.poll()
        for end in waiting:
            poll.register(end, select.POLLIN)
        for end, _ in poll.poll(timeout):
            member = waiting[end]
            data = os.read(end, 1 << 16)
            if not data:
                raise self._death_of(member)
            member.received += data
            self._take(member, keep)

    def _take(self, member: _Member, keep: Keep) -> None:
        while len(member.received) >= FRAME.size:
            item, length = FRAME.unpack_from(member.received)
            if len(member.received) < FRAME.size + length:
                return
            content = bytes(member.received[FRAME.size : FRAME.size + length])
            del member.received[: FRAME.size + length]
            if item == ERROR:
                raise _rebuilt(f"{self.name} {member.number + 1} of {self.size}", content)
            if item == END:
                member.busy, member.private = False, PRIVATE.unpack(content)[0]
            else:
                keep(item, content)

    def _death_of(self, member: _Member) -> TunesmithError:
        """The error of a process that is gone."""
        _, status = os.waitpid(member.pid, 0)
        self._members.remove(member)
        for end in (member.jobs, member.results, member.lifeline):
            os.close(end)
        code = os.waitstatus_to_exitcode(status)
        death = hardware.death_of(code)
        reason, hint = (f"ended with status {code}", "") if death is None else death
        return self._error(
            f"{self.name} {member.number + 1} of {self.size} (process {member.pid}) {reason}; the others were ended",
            "; ".join(part for part in (hint, self._hint) if part),
        )

    def _fork(self, number: int) -> _Member:
        jobs, results, lifeline = os.pipe(), os.pipe(), os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads. The child runs no thread's code, and takes no lock that one may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            for end in (jobs[0], results[1], lifeline[0]):
                os.close(end)
            return _Member(number, pid, jobs[1], results[0], lifeline[1])
        for end in (jobs[1], results[0], lifeline[1]):
            os.close(end)
        for member in self._members:
            for end in (member.jobs, member.results, member.lifeline):
                os.close(end)
        with _Reporter(results[1]):
            self._serve(jobs[0], results[1], lifeline[0])
        raise AssertionError("a forked process went on")

    def _serve(self, jobs: int, results: int, lifeline: int) -> None:
        """The life of a forked process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        hardware.die_with(lifeline, os.getpid())
        logging.disable()  # what is said here, the parent says of its own items; its handlers may hold locks of its threads
        gc.freeze()  # what was there before is never collected here: going through it would copy its pages
        self._begin()
        while header := _read(jobs, FRAME.size):
            job = _read(jobs, FRAME.unpack(header)[1])
            while (item := self._ticket()) != END:
                result = self._work(job, item)
                _write(results, FRAME.pack(item, len(result)) + result)
            _write(results, FRAME.pack(END, PRIVATE.size) + PRIVATE.pack(hardware.private_memory()))


class _Reporter:
    """Ends a forked process, at the end of the block or with an error, which it sends before."""

    def __init__(self, results: int):
        self._results = results

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is not None:
                message, hint = (error.message, error.hint) if isinstance(error, TunesmithError) else (str(error), "")
                lines = "".join(traceback.format_exception(error))
                content = json.dumps({"kind": type(error).__name__, "message": message, "hint": hint, "lines": lines}).encode()
                _write(self._results, FRAME.pack(ERROR, len(content)) + content)
        finally:
            os._exit(0 if error is None else 1)


def _rebuilt(where: str, content: bytes) -> Exception:
    """The error that a forked process sent: one of ours as it was, another with its traceback."""
    sent = json.loads(content)
    kind = vars(errors).get(sent["kind"])
    if isinstance(kind, type) and issubclass(kind, TunesmithError):
        return kind(sent["message"], sent["hint"])
    error = RuntimeError(f"{where}: {sent['kind']}: {sent['message']}")
    error.add_note(sent["lines"])
    return error


def _write(end: int, data: bytes) -> None:
    while data:
        data = data[os.write(end, data) :]


def _read(end: int, size: int) -> bytes:
    """So many bytes; none where the other end is gone."""
    data = b""
    while len(data) < size:
        part = os.read(end, size - len(data))
        if not part:
            return b""
        data += part
    return data
