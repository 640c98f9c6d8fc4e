"""Run a Python program that a model wrote, confined.

A child process runs ``sandbox_child.py``, which confines a child of its own, lets it become the program and watches it:

- time: CPU seconds by rlimit, wall time from here; memory, size of each file, open files, core dumps by rlimit;
- network: no socket of any kind, neither to the internet nor by a path to the daemons of this machine;
- processes: one, with at most 64 threads, which sees and signals no other, and does not outlive the run;
- files: it writes in a directory of its own alone, 64 MiB in all, and changes no mode, owner or time elsewhere; it reads
  the system's programs and libraries and this Python alone, neither homes nor ``/proc``;
- environment: empty; standard input: empty; output: a file, cut by the limit on files.

What this kernel does not hold stands in ``Finished.lacking``; callers refuse to go on unless the user agreed. Landlock and
seccomp need no privilege, so that an ordinary user and a container which forbids namespaces lack nothing on Linux 6.2 or
later (x86-64 and ARM); namespaces, where there are any, are a second lock on the same doors. This holds back accidents and
mischief, not an attacker with a kernel exploit; a virtual machine around tunesmith does more.

Refused: Docker or bubblewrap as a requirement; ``preexec_fn``, which may deadlock beside PyTorch's threads; several
processes for a program, which root could not be held to (``sandbox_child.py``).

Sources: landlock(7), seccomp(2), namespaces(7), setrlimit(2).
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 10
WALL_SECONDS = 20.0
MEMORY_BYTES = 2**30  # address space
FILE_BYTES = 2**20
GRACE_SECONDS = 2.0  # after which the child ends a program that we did not live to end

_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a program ended.

    Attributes:
        code: exit status; None when it ran out of wall time.
        output: the end of what it wrote to standard output and error.
        lacking: what this kernel does not hold of ``network``, ``processes``, ``files``, ``privileges``.
    """

    code: int | None
    output: str
    lacking: tuple[str, ...]


def _exit_status(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Exit status of a child, None when it still runs after so long.

    The kernel says when it ends; where it cannot, Python looks every 50 ms, a third of what a short program takes.
    """
    if not hasattr(os, "pidfd_open"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        return child.poll()
    descriptor = os.pidfd_open(child.pid)
    try:
        select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    return child.poll()


class Running:
    """A program that runs; ``sandbox.running`` starts one and ends it."""

    def __init__(self, child: subprocess.Popen[bytes], talk: Path, report: Path):
        self._child, self._talk, self._report = child, talk, report

    def wait(self, wall_seconds: float) -> Finished:
        """How it ended, at the latest after this time."""
        code = _exit_status(self._child, wall_seconds)
        self.end()
        lacking = json.loads(self._report.read_text(encoding="utf-8") or "null") if self._report.exists() else None
        output = self._talk.read_bytes()[-10_000:].decode("utf-8", "replace")
        return Finished(
            code=code, output=output, lacking=tuple(["network", "processes", "files"] if lacking is None else lacking)
        )

    def end(self) -> None:
        """Kill what is left of it."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


@contextmanager
def running(
    source: str, pipes: tuple[int, ...] = (), wall_seconds: float = WALL_SECONDS, cpu_seconds: int = CPU_SECONDS
) -> Iterator[Running]:
    """A program that runs in a directory of its own, which is then removed.

    Args:
        source: the program.
        pipes: file descriptors that it keeps under their numbers.
        wall_seconds: it is ended after this time, also when this process dies before it.
        cpu_seconds: and after this time of a processor.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        work, program = Path(folder) / "work", Path(folder) / "program.py"
        talk, report = Path(folder) / "output", Path(folder) / "lacking.json"
        work.mkdir()
        program.write_text(source, encoding="utf-8", errors="surrogatepass", newline="\n")
        limits = [str(wall_seconds + GRACE_SECONDS), str(cpu_seconds), str(MEMORY_BYTES), str(FILE_BYTES)]
        with talk.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD), str(work), str(program), str(report), *limits],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                env={},
                pass_fds=pipes,
                start_new_session=True,
            )
        program_running = Running(child, talk, report)
        try:
            yield program_running
        finally:
            program_running.end()


def run_program(source: str, wall_seconds: float = WALL_SECONDS, cpu_seconds: int = CPU_SECONDS) -> Finished:
    """Run a program to its end, confined."""
    with running(source, (), wall_seconds, cpu_seconds) as program:
        return program.wait(wall_seconds)
