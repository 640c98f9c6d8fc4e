"""Greedy decoding with llama.cpp: the deployed form of the model, run by its own engine.

The chat template is the one inside the GGUF and the tokenizer is llama.cpp's: what is measured here is what a user of
Ollama, LM Studio or llama-server will get. Prompts are answered one after another, so that the time of an answer is its
own.

llama.cpp runs in a child process (``infer/llama_cpp_worker.py``). In one process with PyTorch the two thread pools share
one OpenMP runtime, which then sees more threads than cores and puts them to sleep at every barrier: half of the time
went into futexes and decoding took more than twice as long. A crash of the engine also stays the engine's.

A JSON schema goes along as text for its own copy of llguidance, checked by ours beforehand: llama.cpp takes one
that it cannot read, notes it in its log and answers freely (``infer/grammar.py``).
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith import hardware
from tunesmith.errors import ExportError, RunError
from tunesmith.infer.engine import Advance, Answer, Message, Scored
from tunesmith.track import say


class LlamaCppEngine:
    """A GGUF file loaded by llama.cpp in a process of its own, which ends with ``close`` or the ``with`` block.

    Args:
        gguf: the model file.
        context: tokens of context to reserve: the longest prompt and its answer.
    """

    def __init__(self, gguf: Path, context: int):
        self._gguf = gguf
        command = [sys.executable, "-m", "tunesmith.infer.llama_cpp_worker", str(gguf), str(context)]
        self._worker = subprocess.Popen(
            [*command, str(hardware.cpu_count())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=hardware.child_environment(),
        )
        self._read()  # the worker says that the model is loaded

    def __enter__(self) -> "LlamaCppEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        hardware.note_child(self._worker.pid)
        self._worker.communicate()

    def generate(
        self, prompts: list[list[Message]], max_new_tokens: int, advance: Advance, schema: dict[str, Any] | None = None
    ) -> list[Answer]:
        """See ``Engine``.

        Raises:
            ExportError: the engine refused a prompt or died.
            RecipeError: the schema cannot be enforced.
            MissingPackage: a schema, and llguidance is not installed.
        """
        asked: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_new_tokens}
        if schema is not None:
            from tunesmith.infer.grammar import as_text

            asked["grammar"] = as_text(schema)
        answers: list[Answer] = []
        for prompt in prompts:
            started = time.perf_counter()
            reply = self._ask({"messages": prompt, **asked})
            seconds = time.perf_counter() - started
            choice, usage = reply["choices"][0], reply["usage"]
            answers.append(
                Answer(
                    choice["message"]["content"] or "",
                    usage["prompt_tokens"],
                    usage["completion_tokens"],
                    seconds,
                    choice["finish_reason"] == "stop",
                )
            )
            advance(1)
        return answers

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """Not to be had: the binding gives log-probabilities of what llama.cpp says, none of what it is given.

        Raises:
            RunError: always.
        """
        raise RunError(
            f"{self._gguf}: llama.cpp's server gives no log-probability of a given answer",
            "score the merged model with the engine in process",
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps(request) + "\n")
            self._worker.stdin.flush()
        except BrokenPipeError:
            say("llama.cpp has stopped")  # its last words are read below
        reply = self._read()
        if "choices" not in reply:
            raise ExportError(f"llama.cpp refused a prompt: {json.dumps(reply)[:300]}", "is the context large enough?")
        return reply

    def _read(self) -> dict[str, Any]:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            _, said = self._worker.communicate()
            last = "\n".join(said.strip().splitlines()[-5:])
            raise ExportError(f"{self._gguf}: llama.cpp cannot run it:\n{last}", "run: tunesmith export RUN")
        return json.loads(line)
