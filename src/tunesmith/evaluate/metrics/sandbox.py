"""Run a Python program that a model wrote, confined.

A child process runs ``sandbox_child.py``, which confines itself and then becomes the program:

- time: CPU seconds by rlimit, wall time from here; memory, size of written files, open files, core dumps by rlimit;
- network: none, in a network namespace of its own;
- processes: a process namespace of its own, so that nothing outlives the run, and a limit on their number;
- files: Landlock allows writing in the run's own directory alone;
- environment: empty; standard input: empty; output: a file, cut by the limit on files.

The last four need a Linux kernel that gives them to unprivileged users. Where it does not the program still runs under
the rlimits, and ``Finished.lacking`` names what was not confined: callers say so. Reading of files is not confined. This
holds back accidents and ordinary mischief, not an attacker with a kernel exploit; a container or a virtual machine around
tunesmith does more. Refused: Docker as a requirement, and ``preexec_fn``, which may deadlock beside PyTorch's threads.

Sources: landlock(7), namespaces(7), setrlimit(2).
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 10
WALL_SECONDS = 20.0
MEMORY_BYTES = 2**30  # address space
FILE_BYTES = 2**20

_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: exit status; None when it ran out of wall time.
        output: the end of what it wrote to standard output and error.
        lacking: confinements that this kernel refused: ``network``, ``processes``, ``files``.
    """

    code: int | None
    output: str
    lacking: tuple[str, ...]


def run_program(source: str, wall_seconds: float = WALL_SECONDS, cpu_seconds: int = CPU_SECONDS) -> Finished:
    """Run a program to its end in a directory of its own, which is then removed."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        program, talk, report = work / "program.py", Path(folder) / "output", Path(folder) / "lacking.json"
        program.write_text(source, encoding="utf-8", errors="surrogatepass")
        limits = [str(cpu_seconds), str(MEMORY_BYTES), str(FILE_BYTES)]
        with talk.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD), str(work), str(report), *limits],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                env={},
                start_new_session=True,
            )
            try:
                code = child.wait(wall_seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        lacking = tuple(json.loads(report.read_text())) if report.exists() else ("network", "processes", "files")
        return Finished(code, talk.read_bytes()[-10_000:].decode("utf-8", "replace"), lacking)
