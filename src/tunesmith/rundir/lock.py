"""One writer a run directory: an advisory lock that the kernel gives back when its holder dies.

A lock (``file_lock.py``) on ``.lock``, whose content says who holds it, for the message of whoever comes second. Refused: a
file that is there or not (a killed process leaves it behind for ever); a queue (the second one is a mistake that should be told
at once).

Who only asks holds the lock for some microseconds, so a writer that finds it held looks a few times more before it believes it:
however often a page or ``status`` asks, no run fails by it.
"""

import datetime
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.rundir.file_lock import read_at, try_lock

LOCK = ".lock"
LOOKS, PAUSE = 5, 0.02  # of a writer at a lock that is held, and seconds between two


@contextmanager
def writing(directory: Path) -> Generator[None, None, None]:
    """Hold the right to write a run directory within the block.

    Raises:
        RunError: another process holds it, or this one does already through another object.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise RunError(
            f"{directory}: cannot be written: {error.strerror}", "whose is it? or write elsewhere with --out"
        ) from error
    try:
        if not _taken(descriptor):
            raise RunError(
                f"{directory}: is being written by {_holder(descriptor)}",
                "wait for it, or write elsewhere with --out",
            )
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} since {now}".encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    for look in range(LOOKS):
        if try_lock(descriptor):
            return True
        time.sleep(PAUSE if look < LOOKS - 1 else 0.0)
    return False


def _holder(descriptor: int) -> str:
    return read_at(descriptor, 200, 0).decode() or "another process"


def writer_of(directory: Path) -> str | None:
    """Who writes a run directory at this moment, for people; None for nobody."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if try_lock(descriptor, shared=True) else _holder(descriptor)
    finally:
        os.close(descriptor)
