"""Greedy decoding with llama.cpp in process: the deployed form of the model, run by its own engine.

The chat template is the one inside the GGUF and the tokenizer is llama.cpp's: what is measured here is what a user of
Ollama, LM Studio or llama-server will get. Prompts are answered one after another, so that the time of an answer is its
own. The server object listens on a loopback port of its own choosing as long as it lives.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xllamacpp

from tunesmith import hardware
from tunesmith.errors import ExportError
from tunesmith.infer.engine import Answer, Message


class LlamaCppEngine:
    """A GGUF file loaded by llama.cpp.

    Args:
        gguf: the model file.
        context: tokens of context to reserve: the longest prompt and its answer.
    """

    def __init__(self, gguf: Path, context: int):
        params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue] - compiled, no stubs
        params.model.path = str(gguf)
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = hardware.cpu_count()
        params.cpuparams_batch.n_threads = hardware.cpu_count()
        params.use_jinja = True
        params.verbosity = 0
        try:
            self._server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"{gguf}: llama.cpp cannot load it: {error}", "run: tunesmith export RUN") from error

    def generate(self, prompts: list[list[Message]], max_new_tokens: int, advance: Callable[[int], None]) -> list[Answer]:
        """See ``Engine``."""
        answers: list[Answer] = []
        for prompt in prompts:
            started = time.perf_counter()
            reply = self._ask({"messages": prompt, "temperature": 0.0, "max_tokens": max_new_tokens})
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

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        reply = self._server.handle_chat_completions(request)
        parsed = json.loads(reply) if isinstance(reply, str | bytes) else reply
        if "choices" not in parsed:
            raise ExportError(f"llama.cpp refused a prompt: {json.dumps(parsed)[:300]}", "is the context large enough?")
        return parsed
