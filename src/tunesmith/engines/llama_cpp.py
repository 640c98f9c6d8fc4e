"""Greedy decoding with llama.cpp: the deployed form of the model, run by its own engine.

The chat template is the one inside the GGUF and the tokenizer is llama.cpp's: what is measured here is what a user of
Ollama, LM Studio or llama-server will get. A child process answers one prompt after another (``engines/llama_model.py`` says
why there is one); many prompts are dealt out to several of one thread each (``engines/llama_cpp_team.py``). The time of an
answer is then divided by their number, so that the times of all add up to what passed.

An adapter lies beside its base: the server loads it at scale 0 and every request asks for it at scale 1, as a request to
llama-server does that chooses among several.

llama.cpp's server gives log-probabilities of what it says, none of what it is given; those come from its library, on the
prompt that the server rendered (``engines/libllama.py``).

Tools go along too: the server writes them with the template and takes calls out of the answer with its own parser, as whoever
deploys the file will see it (``engines/wire.py``). Once a call has begun, it also holds the model to the declared schema. An
answer that its parser cannot read is an error of the server's, and a malformed call here.

What answers are constrained to goes along as text for its own copy of llguidance, checked by ours beforehand: llama.cpp takes a
grammar that it cannot read, notes it in its log and answers freely (``engines/constraint.py``).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.engines.constraint import as_text
from tunesmith.engines.engine import Advance, Answer, Constraint, Scored
from tunesmith.engines.llama_cpp_team import LlamaCppTeam
from tunesmith.engines.llama_model import LlamaProcess
from tunesmith.engines.wire import calls_of_reply, wire_messages
from tunesmith.errors import ExportError
from tunesmith.messages import Message, Tools
from tunesmith.rundir.records import Json
from tunesmith.rundir.records.calls import Calls

UNREAD = "does not match the expected"  # llama.cpp of an answer that its parser for calls cannot read


class LlamaCppEngine:
    """A GGUF file loaded by llama.cpp in processes of its own, which end with ``close`` or the ``with`` block.

    Args:
        gguf: the model file.
        context: tokens of context to reserve: the longest prompt and its answer.
        lora: adapter GGUF, applied to every answer at scale 1.
        prompts: how many will be asked in one call; of many, some are answered side by side.

    Raises:
        ExportError: llama.cpp cannot run the file or apply the adapter.
    """

    def __init__(self, gguf: Path, context: int, lora: Path | None = None, prompts: int = 1):
        self._team = LlamaCppTeam(gguf, context, lora, prompts)
        self._adapters: Json = {} if lora is None else {"lora": [{"id": 0, "scale": 1.0}]}

    def __enter__(self) -> "LlamaCppEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._team.close()

    def generate(
        self,
        prompts: list[list[Message]],
        max_new_tokens: int,
        advance: Advance,
        allowed: Constraint | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> list[Answer]:
        """See ``Engine``. The seconds of an answer are its own, divided by the processes that answered side by side.

        Raises:
            ExportError: the engine refused a prompt or died.
            RecipeError: what answers are constrained to cannot be enforced.
            MissingPackage: something is allowed, and llguidance is not installed.
        """
        request: Json = {"temperature": 0.0, "max_tokens": max_new_tokens, **self._adapters}
        if allowed is not None:
            request["grammar"] = as_text(allowed)
        declared = tools or [None] * len(prompts)
        assert len(declared) == len(prompts)

        def answer(process: LlamaProcess, number: int, first: bool, side_by_side: int) -> Answer:
            own = declared[number]
            body: dict[str, Any] = {"messages": wire_messages(prompts[number]), **request, "cache_prompt": not first}
            if own:  # a grammar of ours and one for calls exclude each other
                body |= {"tools": own, "tool_choice": "auto" if allowed is None else "none"}
            answered = _answer(process, body, own, with_calls=tools is not None)
            return replace(answered, seconds=answered.seconds / side_by_side)

        return self._team.run(len(prompts), answer, advance)

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """See ``Engine``. An answer is encoded apart from its prompt and as plain text, as in training.

        Raises:
            ExportError: a prompt and its answer do not fit the context, or the engine refused the conversation or died.
        """

        def score(process: LlamaProcess, number: int, first: bool, side_by_side: int) -> Scored:
            prompt, answer = items[number]
            return Scored(**process.ask("score", messages=prompt, answer=answer))

        return self._team.run(len(items), score, advance)


def _answer(process: LlamaProcess, body: dict[str, Any], own: Tools, with_calls: bool) -> Answer:
    """What the server answers to a request, and the seconds that it took."""
    started = time.perf_counter()
    reply = process.ask("chat", body=body)
    unread = bool(own) and UNREAD in json.dumps(reply.get("error", ""))
    if unread:  # the same prompt, and the answer as it is
        reply = process.ask("chat", body=body | {"tool_choice": "none"})
    seconds = time.perf_counter() - started
    if "choices" not in reply:
        raise ExportError(f"llama.cpp refused a prompt: {json.dumps(reply)[:300]}", "is the context large enough?")
    choice, usage = reply["choices"][0], reply["usage"]
    text, calls = calls_of_reply(choice["message"], own)
    return Answer(
        text,
        usage["prompt_tokens"],
        usage["completion_tokens"],
        seconds,
        choice["finish_reason"] in ("stop", "tool_calls"),
        None if not with_calls else Calls(malformed=1) if unread else calls,
    )
