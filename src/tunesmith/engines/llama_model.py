"""What llama.cpp itself computes of a GGUF file: its rendering, its token ids, its logits.

An exported file is proven by comparing it with what was trained, stage by stage: the text that the template writes, the ids
that the tokenizer makes of it, the distribution of the next token. Each has to be llama.cpp's own. Our renderer and tokenizer
would agree with themselves, and the answer that a user gets is made by neither.

``LlamaProcess`` is our end of the child that llama.cpp runs in (``engines/llama_cpp_worker.py``), for ``LlamaModel`` and
``LlamaCppEngine`` alike. In one process with PyTorch the two thread pools share one OpenMP runtime, which then sees more
threads than cores and puts them to sleep at every barrier: half of the time went into futexes and decoding took more than
twice as long. A crash of llama.cpp also stays its own. What it logs goes to a file without a name, since nobody empties a pipe
while he waits for a reply; its last lines are in the error when it dies.

Shape suffixes: V vocabulary; here: L positions whose logits are wanted.
"""

import io
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith import hardware
from tunesmith.engines.engine import Pair, Scored
from tunesmith.errors import ExportError
from tunesmith.messages import Message

logger = logging.getLogger(__name__)

SECONDS = 60  # that the child has to end when it is told to
LAST = 2**14  # bytes of its log that are looked at when it died


class LlamaProcess:
    """llama.cpp in a process of its own, which ends with ``close`` or the ``with`` block.

    Args:
        gguf: the model file.
        context: tokens of context to reserve: the longest prompt and its answer.
        lora: adapter GGUF.
        part: what is loaded at once, ``server`` or ``library``; the other when it is first needed.
        threads: for computing.

    Attributes:
        has_gpu: whether llama.cpp sees one and its server was loaded; it then computes with a thread a core beside it.

    Raises:
        ExportError: llama.cpp cannot run the file.
    """

    def __init__(self, gguf: Path, context: int, lora: Path | None, part: str, threads: int):
        self._gguf = gguf
        command = [sys.executable, "-m", "tunesmith.engines.llama_cpp_worker", str(gguf), str(context)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._child = hardware.Child(
            [*command, str(threads), *([] if lora is None else [str(lora)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self.has_gpu: bool = self.ask(f"load {part}")
        except ExportError as error:
            raise ExportError(f"{error.message}{self._end()}", error.hint) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process's number; None where it has ended."""
        return self._child.pid if self._child.poll() is None else None

    def kill(self) -> None:
        """End the process in the middle of what it computes; whoever waits for its reply is told that it died."""
        self._child.kill()

    def close(self) -> None:
        """End the process. It may be called twice."""
        if self.pid is not None:
            hardware.note_children([self.pid])
        self._end()

    def ask(self, what: str, **arguments: Any) -> Any:
        """Send a request and return what was ``done``.

        Raises:
            ExportError: llama.cpp refuses it, or died.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        assert not self._child.stdin.closed, "a request after close()"
        try:
            self._child.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            logger.warning("llama.cpp has stopped")  # its last words are read below
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        reply = json.loads(line)
        if "error" in reply:
            raise ExportError(reply["error"], reply["hint"])
        return reply["done"]

    def read_rows(self, shape: list[int]) -> NDArray[np.float32]:
        """The fp32 numbers that follow a reply.

        Raises:
            ExportError: llama.cpp died before they were complete.
        """
        assert isinstance(self._child.stdout, io.BufferedReader)
        rows_LV = np.empty(shape, dtype=np.float32)
        if self._child.stdout.readinto(rows_LV.data.cast("B")) != rows_LV.nbytes:
            raise self._died()
        return rows_LV

    def _died(self) -> ExportError:
        log = self._end()
        death = hardware.death_of(self._child.returncode)
        if death is not None:
            return ExportError(f"{self._gguf}: llama.cpp {death.reason}{log}", death.hint)
        return ExportError(
            f"{self._gguf}: llama.cpp cannot run it, and ended with exit code {self._child.returncode}:{log}",
            "run: tunesmith export RUN",
        )

    def _end(self) -> str:
        """End the process; the last lines of its log, each behind a line break. Nothing the second time."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.close()
        except BrokenPipeError:
            logger.warning("llama.cpp has stopped")  # what it did not read no longer matters
        try:
            self._child.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        if self._log.closed:
            return ""
        self._log.seek(max(0, self._log.seek(0, 2) - LAST))
        last = self._log.read().decode(errors="replace").strip().splitlines()[-5:]
        self._log.close()
        return "".join(f"\n{line}" for line in last)


class LlamaModel:
    """A GGUF file as llama.cpp sees it, in a child process that ends with ``close`` or the ``with`` block.

    Flash attention and the types of the KV cache are llama.cpp's defaults: keys and values are kept in fp16.

    Args:
        gguf: the model file.
        context: tokens that a prompt may have.
        lora: adapter GGUF, applied at scale 1.

    Raises:
        ExportError: llama.cpp cannot run the file or apply the adapter.
    """

    def __init__(self, gguf: Path, context: int, lora: Path | None = None):
        self._process = LlamaProcess(gguf, context, lora, "library", hardware.cpu_count())

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def render(self, messages: list[Message]) -> str:
        """The prompt that llama.cpp makes of a conversation with the file's template, up to where the assistant begins.

        With the beginning-of-text token that its tokenizer puts in front: the text of all that the model reads. The template
        alone says whether the model thinks; llama.cpp tells a template to think that does not say
        (``chat/template_choice.py``).

        Raises:
            ExportError: the template refuses the conversation.
        """
        return self._process.ask("render", messages=messages)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt as the server makes them: control tokens parsed, beginning-of-text once."""
        return self._process.ask("tokenize", text=text)

    def detokenize(self, ids: list[int]) -> str:
        """Text of token ids, control tokens as they are written."""
        return self._process.ask("detokenize", ids=ids)

    def logits(self, ids: list[int], first: int = 0) -> NDArray[np.float32]:
        """Logits of the next token, computed in one pass that begins with an empty cache.

        Args:
            ids: token ids, beginning-of-text included where the model wants it.
            first: the first position looked at.

        Returns:
            fp32 of shape (len(ids) - first, V); row ``i`` is what follows ``ids[: first + i + 1]``.

        Raises:
            ExportError: no token, one that is not in the vocabulary, more than the context holds, or a failed pass.
        """
        return self._process.read_rows(self._process.ask("logits", ids=ids, first=first))

    def continuation_logprobs(self, pairs: Sequence[Pair], advance: Callable[[int], None] = lambda _: None) -> list[Scored]:
        """Log-probability of every continuation given its context, in order; neighbours that begin alike share that work.

        Args:
            pairs: token ids of context (at least one) and continuation.
            advance: called with the number of pairs done.

        Raises:
            ExportError: a token that is not in the vocabulary, more than the context holds, or a failed pass.
        """
        scores: list[Scored] = []
        for context, continuation in pairs:
            logprob, greedy = self._process.ask("score ids", context=list(context), continuation=list(continuation))
            scores.append(Scored(logprob, len(context), len(continuation), greedy))
            advance(1)
        return scores

    def close(self) -> None:
        """End the process."""
        self._process.close()
