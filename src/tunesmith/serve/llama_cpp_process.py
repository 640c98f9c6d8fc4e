"""Our end of a process in which llama.cpp serves: what it is told, what it says, and how it ends.

The files are opened here and handed over as ``/proc/PID/fd/N``. A run that is exported anew puts other files in their place;
a process that is started again after a death has to answer with those that the first one had, and their names would lead it
to the new ones.

It is a session of its own: an interrupt at the terminal reaches the parent alone, which lets answers end before it ends this.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith import hardware
from tunesmith.errors import ExportError

LAST = 2**14  # bytes of the log that are looked at when it does not start
SECONDS = 10  # that the process has to end when it is told to


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the process is told.

    Attributes:
        model: GGUF file.
        adapters: LoRA GGUF files; their places are the ids of llama.cpp.
        slots: answers at a time.
        context: tokens of each slot.
        threads: for computing.
        key: without which no request is answered.
    """

    model: str
    adapters: tuple[str, ...]
    slots: int
    context: int
    threads: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the server says of itself.

    Attributes:
        url: its address.
        slots: answers at a time.
        context: tokens of each slot, as llama.cpp rounded them and within what the model was made for.
        vocabulary: tokens that the model knows.
    """

    url: str
    slots: int
    context: int
    vocabulary: int


class Files:
    """A model's files, open: the same bytes for as long as this is, whatever happens to their names.

    Args:
        model: GGUF file.
        adapters: LoRA GGUF files on it.

    Raises:
        ExportError: one of them cannot be read.
    """

    def __init__(self, model: Path, adapters: Sequence[Path] = ()):
        self.model, self.adapters = model, tuple(adapters)
        self._numbers: list[int] = []
        try:
            for file in (model, *adapters):
                self._numbers.append(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            raise ExportError(f"{error.filename}: cannot be read: {error.strerror}", "export the run again") from error

    @property
    def names(self) -> list[str]:
        """Names under which this process's children find them, the model first."""
        return [f"/proc/{os.getpid()}/fd/{number}" for number in self._numbers]

    def as_named(self, text: str) -> str:
        """A text of llama.cpp with the files' own names."""
        for name, file in zip(self.names, (self.model, *self.adapters), strict=True):
            text = text.replace(f"'{name}'", str(file)).replace(name, str(file))
        return text

    def close(self) -> None:
        """Let go of them."""
        for number in self._numbers:
            os.close(number)
        self._numbers = []


class LlamaCppProcess:
    """llama.cpp that serves; it ends with ``close`` or the ``with`` block. Starting it blocks for seconds.

    Args:
        files: what it serves.
        slots: answers at a time.
        context: tokens of each slot.

    Attributes:
        facts: what it says of itself.
        key: of its requests.

    Raises:
        ExportError: it cannot run the file or apply an adapter, with its reason.
        MissingPackage: llama.cpp is not installed.
    """

    def __init__(self, files: Files, slots: int, context: int):
        self.key = secrets.token_hex(16)
        model, *adapters = files.names
        settings = Settings(
            model=model,
            adapters=tuple(adapters),
            slots=slots,
            context=context,
            threads=hardware.physical_cores(),
            key=self.key,
        )
        with tempfile.TemporaryFile() as log:
            self._child = hardware.Child(
                [sys.executable, "-m", "tunesmith.serve.llama_cpp_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            told = self._told(settings)
            if "error" not in told:
                self.facts = Facts(**told)
                return
            log.seek(max(0, log.seek(0, 2) - LAST))
            last = log.read().decode(errors="replace").strip().splitlines()[-5:]
        death = self.close()
        reason = files.as_named("".join(f"\n{line}" for line in (told["error"], *last)))
        died = "" if self._child.returncode == 0 else f" {death}"
        raise ExportError(f"{files.model}: llama.cpp cannot serve it:{died}{reason}", "run: tunesmith export RUN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._child.pid

    @property
    def output(self) -> int:
        """A file descriptor that can be read when it has ended, and not before."""
        assert self._child.stdout is not None
        return self._child.stdout.fileno()

    def close(self) -> str:
        """End the process, and say how it ended. It may be called twice."""
        assert self._child.stdin is not None and self._child.stdout is not None
        if not self._child.stdin.closed:
            self._child.stdin.close()
        try:
            self._child.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        death = hardware.death_of(self._child.returncode)
        return f"ended with exit code {self._child.returncode}" if death is None else f"{death.reason}; {death.hint}"

    def _told(self, settings: Settings) -> dict[str, Any]:
        """The line that it says, or why there is none."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(asdict(settings)).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return {"error": "it ended before it was told what to serve"}
        line = self._child.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else {"error": "it ended without a word"}
