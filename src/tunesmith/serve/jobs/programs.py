"""The programs that do the work of a job, and how one of them is ended."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import BinaryIO

from tunesmith.hardware import Child
from tunesmith.serve.jobs.place import Place

PYTHON = sys.executable
GRACE = 10.0  # seconds between asking a program to end and ending it


@dataclass(frozen=True)
class Programs:
    """Command lines; tests put others in their place.

    Attributes:
        check: of a job's files, by the directory of the jobs and the job's id; its answer is that of ``tasks.check``.
        run: of a job, the same way.
    """

    check: Callable[[Place, str], list[str]]
    run: Callable[[Place, str], list[str]]


PROGRAMS = Programs(
    check=lambda place, job: [PYTHON, "-m", "tunesmith.serve.jobs.tasks", "check", str(place.directory), job],
    run=lambda place, job: [PYTHON, "-m", "tunesmith", "run", str(place.run(job).path)],
)


def start(command: list[str], log: Path, answer: Path | None = None) -> Child:
    """Start a program in a process group of its own; it is killed when this process ends.

    Args:
        log: what it says goes behind what is there.
        answer: what it prints; with the rest when None.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _open(log, os.O_APPEND) as said:
        if answer is None:
            return Child(command, online=True, start_new_session=True, stdin=DEVNULL, stdout=said, stderr=said)
        with _open(answer, os.O_TRUNC) as printed:
            return Child(command, online=True, start_new_session=True, stdin=DEVNULL, stdout=printed, stderr=said)


def _open(path: Path, how: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600), "wb")


def signal_group(child: Child, number: signal.Signals) -> None:
    """Send a signal to a program and all that it has started."""
    if child.poll() is None:
        os.killpg(child.pid, number)
