"""Answers of llama.cpp by token ids, for a base and the adapters on it; a process that dies is started again.

**Never another adapter's answer.** llama.cpp takes a request without ``lora``, or with an empty list, as one for its global
scales, and goes on with whatever the slot computed before it: adapters are compared only where a list is given. So every
request carries the scale of every adapter, 0 or 1, one for the base too, and the process keeps no cache that knows no adapters
(``llama_cpp_child.py``).

**Sampling.** Every number is given, so that no default of llama.cpp's (temperature 0.8, top_k 40, top_p 0.95, min_p 0.05) is
left. Penalties look at the whole context, the prompt included.

**Where an answer ends.** llama.cpp ends it at the tokens that the file calls ends; the renderer may know others, at which the
connection is closed. Neither is part of the answer.

**What llama.cpp does not say.** A character that several tokens make comes with the last of them; log-probabilities are those
of that token alone, and its text is the character. What a stop text cut off comes without log-probabilities.

**A death** is noticed at once. Requests meanwhile are told how long it may take; starts that fail again and again wait longer
each time. The same files are opened (``llama_cpp_process.Files``).

Closing an answer closes its connection, which frees the slot after the token that is being computed.

Source: llama.cpp ``tools/server/README.md``; ``server-context.cpp`` (``launch_slot_with_task``, ``process_token``) by its
behaviour.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import orjson

from tunesmith.chat.render import Renderer
from tunesmith.errors import ExportError, MissingPackage, first_line
from tunesmith.kernels.llama_cpp import open_shared_object
from tunesmith.rundir.records import Json
from tunesmith.serve.asking import Ask, End, EngineGone, EngineStarting, Likely, Piece, Sampling, Token
from tunesmith.serve.engine_http import lines_of, reason_of
from tunesmith.serve.llama_cpp_process import Files, LlamaCppProcess

logger = logging.getLogger(__name__)

PAUSES = (0.0, 1.0, 2.0, 5.0, 15.0, 60.0)  # seconds before a start, by the number of those that came to nothing before it
STEADY = 60.0  # seconds after which a process counts as one that runs
FINAL = ("content", "tokens", "stop", "stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated", "timings")


class _Entry(TypedDict):
    """A token with its log-probability."""

    id: int
    bytes: list[int]
    logprob: float
    top_logprobs: "list[_Entry]"


class _Event(TypedDict):
    """What llama.cpp says at a time; the last one has ``stop``, and all from ``stop_type`` on."""

    content: str
    tokens: list[int]
    completion_probabilities: NotRequired[list[_Entry]]
    tokens_predicted: int
    tokens_evaluated: int
    stop: bool
    stop_type: str
    stopping_word: str
    timings: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a process has room for.

    Attributes:
        slots: answers at a time.
        context: tokens of each.
    """

    slots: int
    context: int


class LlamaCppEngine:
    """llama.cpp in a process that is kept alive; made by ``start``, ended by ``close``.

    Attributes:
        context: tokens that a prompt and its answer may have together.
        slots: answers at a time.
    """

    def __init__(self, files: Files, room: Room, process: LlamaCppProcess):
        import httpx2

        self._files, self._room = files, room
        # llama.cpp closes a connection that is idle for 5 s without a word, so none is used twice.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=5.0), limits=limits, trust_env=False)
        self._errors = (httpx2.TransportError, httpx2.StreamError)
        self._process: LlamaCppProcess | None = None
        self._began, self._failures, self._closing = 0.0, 0, asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self.context, self.slots, self._vocabulary = process.facts.context, process.facts.slots, process.facts.vocabulary
        self._take(process)

    @classmethod
    async def start(cls, model: Path, adapters: Sequence[Path], room: Room, renderer: Renderer) -> "LlamaCppEngine":
        """A process that is ready for its first request.

        Args:
            model: GGUF file.
            adapters: LoRA GGUF files; a request names one by its place here.
            renderer: whose tokens the model has to know.

        Raises:
            ExportError: llama.cpp cannot run a file or apply an adapter, or the model has other tokens.
            MissingPackage: llama.cpp or the HTTP client is not installed.
        """
        try:
            import httpx2  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingPackage(f"serving needs the package {error.name}", "run: pip install 'tunesmith[serve]'") from error
        open_shared_object()
        files = Files(model, adapters)
        try:
            process = await asyncio.to_thread(LlamaCppProcess, files, room.slots, room.context)
        except ExportError:
            files.close()
            raise
        engine = cls(files, room, process)
        try:
            await engine._check_tokens(renderer)
        except (ExportError, EngineGone):
            await engine.close()
            raise
        return engine

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def answer(self, adapter: int | None, ask: Ask, renderer: Renderer) -> AsyncGenerator[Piece | End, None]:
        """See ``asking.Borrowed``.

        Args:
            adapter: place among the adapters; None: the base as it is.

        Raises:
            EngineStarting: there is no process now, and nothing was asked.
            EngineGone: it died, broke off, or refused the request.
        """
        process = self._process
        if process is None:
            raise self._not_there()
        body = self._body(adapter, ask, renderer)
        headers = {"Authorization": f"Bearer {process.key}"}
        began = False
        try:
            async with self._client.stream("POST", f"{process.facts.url}/completion", json=body, headers=headers) as response:
                began = True
                if response.status_code != 200:
                    raise EngineGone(f"llama.cpp refused a request: {reason_of(await response.aread())}")
                async for piece in _read(lines_of(response.aiter_raw()), ask, renderer):
                    yield piece
        except self._errors as error:
            if not began:
                raise self._not_there() from error
            raise EngineGone(f"llama.cpp broke off in the middle of an answer ({type(error).__name__})") from error

    async def close(self) -> None:
        """End the process, and what it answers with it."""
        self._closing.set()
        if self._starting is not None:
            await asyncio.wait([self._starting])
        await self._client.aclose()
        process, self._process = self._process, None
        if process is not None:
            asyncio.get_running_loop().remove_reader(process.output)
            await asyncio.to_thread(process.close)
        self._files.close()

    def _take(self, process: LlamaCppProcess) -> None:
        self._process, self._began = process, time.monotonic()
        asyncio.get_running_loop().add_reader(process.output, self._ended, process)

    def _ended(self, process: LlamaCppProcess) -> None:
        """Called by the loop when the process is gone."""
        asyncio.get_running_loop().remove_reader(process.output)
        self._failures = 0 if time.monotonic() - self._began > STEADY else self._failures + 1
        self._process = None
        self._starting = asyncio.get_running_loop().create_task(self._start_again(process))

    async def _start_again(self, dead: LlamaCppProcess) -> None:
        death = await asyncio.to_thread(dead.close)
        logger.error(f"serve: llama.cpp {death} ({self._files.model.name}); it is started again")
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._pause)
            if self._closing.is_set():
                return
            try:
                process = await asyncio.to_thread(LlamaCppProcess, self._files, self._room.slots, self._room.context)
            except (ExportError, OSError) as error:  # the second: no process or no memory for one
                self._failures += 1
                logger.error(f"serve: {first_line(error)}; tried again in {self._pause:.0f} s")
                continue
            logger.info(f"serve: llama.cpp answers again ({self._files.model.name})")
            self._take(process)
            return

    @property
    def _pause(self) -> float:
        return PAUSES[min(self._failures, len(PAUSES) - 1)]

    def _not_there(self) -> EngineStarting:
        return EngineStarting("llama.cpp died and is being started again", max(5.0, self._pause))

    def _body(self, adapter: int | None, ask: Ask, renderer: Renderer) -> Json:
        body: Json = {
            "prompt": list(ask.prompt),
            "n_predict": ask.max_tokens,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
            "response_fields": list(FINAL),
            "stop": list(ask.stop),
            "lora": [{"id": place, "scale": float(place == adapter)} for place in range(len(self._files.adapters))],
            "repeat_last_n": self.context,
            **_sampling(ask.sampling),
        }
        if ask.logprobs is not None:
            body |= {"n_probs": max(1, ask.logprobs), "post_sampling_probs": False}
        if ask.grammar is not None:
            body["grammar"] = ask.grammar
        if ask.show_control:
            body["preserved_tokens"] = list(renderer.vocabulary.control)
        return body

    async def _check_tokens(self, renderer: Renderer) -> None:
        """Whether the model writes the renderer's control tokens with the same ids, and has a number for every token.

        Raises:
            ExportError: it does not.
            EngineGone: it cannot be asked.
        """
        process = self._process
        assert process is not None
        control = renderer.vocabulary.control
        body = {"content": "".join(control), "parse_special": True, "add_special": False}
        headers = {"Authorization": f"Bearer {process.key}"}
        try:
            response = await self._client.post(f"{process.facts.url}/tokenize", json=body, headers=headers)
        except self._errors as error:
            raise EngineGone(f"llama.cpp broke off ({type(error).__name__})") from error
        if response.json().get("tokens") != list(control.values()) or len(renderer.tokenizer) > self._vocabulary:
            raise ExportError(
                f"{self._files.model}: has other tokens than the model that was trained",
                "is it a GGUF of the run's own base? look at export/ in the run directory",
            )


async def _read(lines: AsyncIterator[bytes], ask: Ask, renderer: Renderer) -> AsyncGenerator[Piece | End, None]:
    """The pieces of a stream, up to the end. What follows a control token says whether it was the end of the turn.

    Raises:
        EngineGone: it says an error, or ends without an end.
    """
    written = {number: text for text, number in renderer.vocabulary.control.items()}
    held: _Event | None = None  # an event whose token is a control token
    async for line in lines:
        if not line.startswith((b"data: ", b"error: ")):
            continue  # between events, and comments that keep the connection alive
        event: _Event = orjson.loads(line.partition(b": ")[2])
        if "stop" not in event:
            raise EngineGone(f"llama.cpp broke off in the middle of an answer: {reason_of(line.partition(b': ')[2])}")
        if held is not None:
            unknown = held["tokens"][-1] in renderer.stop_ids and not event["stop"]  # an end that the file does not know
            if unknown or event.get("stop_type") == "eos":
                held["content"] = held["content"].removesuffix(written[held["tokens"][-1]])
                held["completion_probabilities"] = []
            if piece := _piece(held, ask):
                yield piece
            if unknown:
                evaluated, predicted = held["tokens_evaluated"], held["tokens_predicted"]
                yield End(reason="stop", prompt_tokens=evaluated, cached_tokens=0, new_tokens=predicted)
                return
            held = None
        if event["stop"]:
            if piece := _piece(event, ask):
                yield piece
            yield _end(event)
            return
        if event["tokens"] and event["tokens"][-1] in written:
            held = event
        elif piece := _piece(event, ask):
            yield piece
    raise EngineGone("llama.cpp broke off in the middle of an answer")


def _piece(event: _Event, ask: Ask) -> Piece | None:
    """What an event adds to the answer, if anything."""
    entries = [] if ask.logprobs is None else event.get("completion_probabilities", [])
    tokens = tuple([Token(_likely(entry), tuple(map(_likely, entry["top_logprobs"][: ask.logprobs]))) for entry in entries])
    return Piece(event["content"], tokens) if event["content"] or tokens else None


def _end(event: _Event) -> End:
    kind = event["stop_type"]
    return End(
        reason="length" if kind == "limit" else "stop",
        prompt_tokens=event["tokens_evaluated"],
        cached_tokens=int(event["timings"]["cache_n"]),
        new_tokens=event["tokens_predicted"],
        stop=event["stopping_word"] if kind == "word" else None,
    )


def _likely(entry: _Entry) -> Likely:
    return Likely(entry["id"], bytes(entry["bytes"]), entry["logprob"])


def _sampling(sampling: Sampling) -> Json:
    """Every number of it; temperature before the cuts, as OpenAI and vLLM have it."""
    return {
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": 1.0,
        "repeat_penalty": 1.0,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "dry_multiplier": 0.0,
        "xtc_probability": 0.0,
        "mirostat": 0,
        "dynatemp_range": 0.0,
        "seed": -1 if sampling.seed is None else sampling.seed % (2**32 - 1),  # the last number means any
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
    }
