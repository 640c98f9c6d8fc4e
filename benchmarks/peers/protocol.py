"""What a training process says to the benchmark that drives it: one word in, one line of JSON out.

``train_step.py`` keeps one process per arm alive, each in an environment of its own, and lets them compute one at a time.
The words are ``evaluate`` (mean loss on the fixed rows), ``step`` (the next optimizer step) and ``stop``. Answers go
to the stdout that the process was started with; what libraries print there is sent to stderr instead, so that a log line
can never be taken for a figure. Where PyTorch has a CUDA device, a step ends when the device has, and brings its memory.

Standard library only: every peer's environment can import it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def open_answers() -> Callable[[dict[str, Any]], None]:
    """Take stdout for answers; from here on ``print`` writes to stderr. Returns the function that answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(figures: dict[str, Any]) -> None:
        answers.write(json.dumps(figures) + "\n")
        answers.flush()

    return answer


@contextmanager
def stdout_kept() -> Iterator[None]:
    """A block whose output goes to stderr, for an import that talks before there are answers."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def next_command(answer: Callable[[dict[str, Any]], None], evaluate: Callable[[], float]) -> None:
    """Return when a step is wanted; answers ``evaluate`` meanwhile, and ends the process on ``stop`` or a closed pipe."""
    for line in sys.stdin:
        word = line.strip()
        if word == "step":
            return
        if word == "evaluate":
            answer({"loss": evaluate(), "peak_bytes": peak_bytes()})
        elif word == "stop":
            break
        else:
            raise ValueError(f"{word!r}: not a command; expected evaluate, step or stop")
    answer({"stopped": True})
    raise SystemExit(0)


def _cuda() -> Any:
    """``torch.cuda`` of a process that has a device; None elsewhere."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


class Clock:
    """Wall and processor seconds since it was made, all threads counted; on a GPU also this step's peak of its memory."""

    def __init__(self) -> None:
        if (cuda := _cuda()) is not None:
            cuda.synchronize()
            cuda.reset_peak_memory_stats()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, loss: float, tokens: int, supervised: int) -> dict[str, Any]:
        """The answer to ``step``; tokens are those of the rows, whatever was padded, packed or shared."""
        device = {}
        if (cuda := _cuda()) is not None:
            cuda.synchronize()
            device = {"allocated_bytes": cuda.max_memory_allocated(), "reserved_bytes": cuda.max_memory_reserved()}
        return {
            **device,
            "loss": loss,
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "tokens": tokens,
            "supervised": supervised,
            "peak_bytes": peak_bytes(),
        }


def read_job(path: Path) -> Job:
    """The rows (``ids``, ``supervised``), which of them each step and the evaluation take, and the adapter's start."""
    return json.loads(path.read_text(encoding="utf-8"))


def counts(job: Job, rows: list[int]) -> tuple[int, int]:
    """Tokens, and supervised tokens, of some rows."""
    chosen = [job["rows"][row] for row in rows]
    return sum(len(row["ids"]) for row in chosen), sum(sum(row["supervised"]) for row in chosen)


def reset_peak() -> None:
    """Let the high-water mark of this process start anew, so that loading is not counted as training."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """High-water mark of this process (``VmHWM``) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")
