"""vLLM behind the same front: many adapters on a GPU, loaded and unloaded while it runs.

vLLM runs by itself, in an environment of its own (its pins exclude ours), with the command that ``start_command`` gives. Here
it is asked by token ids over ``/v1/completions``, so what was trained is what is asked, as with llama.cpp.

**A version is a path.** vLLM finds keys and values that it kept by the adapter's name and path: other weights under the same
two are answered from the old ones, in silence. So every version of an adapter is copied to a directory that is named after its
content and never written again, and its name in vLLM holds the version too. The old version is unloaded when its last answer
has ended; unloading it earlier would do too, but then a retry would find no model.

**An adapter that changes nothing.** vLLM loads an adapter whose layers have other names than it expects, and answers as the
base does. So a loaded adapter is asked and its log-probabilities are held against the base's; equal ones are refused.

A vLLM that was started again knows no adapters: one that it does not find is loaded again, once, before the answer begins.

Source: vLLM 0.32 ``entrypoints/openai/models/serving.py``, ``v1/core/kv_cache_utils.py``; vllm-project/vllm#42125, #34186.
"""

import asyncio
import json
import logging
import re
import shlex
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.parse import urlsplit

from tunesmith import hardware
from tunesmith.chat.render import Renderer
from tunesmith.errors import ExportError, MissingPackage, RunError, TunesmithError
from tunesmith.rundir import atomic_directory
from tunesmith.rundir.records import Json
from tunesmith.serve.asking import Ask, End, EngineGone, EngineStarting, Likely, Piece, Sampling, Served, Token
from tunesmith.serve.engine_http import lines_of, reason_of
from tunesmith.serve.entry import Entry, Find
from tunesmith.serve.leases import Leases
from tunesmith.serve.placed import PlacedModels

logger = logging.getLogger(__name__)

PROBE = 8  # tokens that base and adapter are compared on
AGAIN = 5.0  # seconds until a server that is not there is worth asking again
SPARE = 2  # adapters that vLLM has room for beside those that are served: new versions while the old ones answer

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
# Letters that byte-level vocabularies write for bytes (GPT-2's encoder.py): those that print stand for themselves.
BYTES = {chr(byte): byte for byte in _PRINTABLE}
BYTES |= {chr(256 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)}


class _Logprobs(TypedDict):
    """Of some tokens, which are written ``token_id:17``."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float] | None] | None


class _Choice(TypedDict):
    """A stretch of an answer."""

    text: str
    logprobs: NotRequired[_Logprobs | None]
    finish_reason: str | None
    stop_reason: NotRequired[str | int | None]


class _Usage(TypedDict):
    """Tokens of prompt and answer."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: NotRequired[dict[str, int] | None]


class Vllm:
    """A vLLM server.

    Args:
        url: its address, without ``/v1``.
        key: of its requests; None where it asks for none.
    """

    def __init__(self, url: str, key: str | None = None):
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise MissingPackage("serving needs the package httpx2", "run: pip install 'tunesmith[serve]'") from error
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout, limits = httpx2.Timeout(None, connect=5.0), httpx2.Limits(max_connections=None, keepalive_expiry=1.0)
        self._client = httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, limits=limits, trust_env=False)
        self._errors = (httpx2.TransportError, httpx2.StreamError)
        self._not_there = (httpx2.ConnectError, httpx2.ConnectTimeout)

    async def ask(self, path: str, body: Json | None = None) -> tuple[int, str]:
        """Status and text of an answer; with a body a POST.

        Raises:
            EngineStarting: nobody answers there.
            EngineGone: the answer broke off.
        """
        try:
            response = await self._client.request("GET" if body is None else "POST", path, json=body)
        except self._not_there as error:
            raise self._away() from error
        except self._errors as error:
            raise EngineGone(f"vLLM broke off ({type(error).__name__})") from error
        return response.status_code, response.text

    async def stream(self, path: str, body: Json) -> AsyncGenerator[tuple[int, str], None]:
        """Status, and the lines as they come; raises as ``ask``.

        Raises:
            EngineStarting: nobody answers there.
            EngineGone: the answer broke off.
        """
        try:
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    yield response.status_code, (await response.aread()).decode(errors="replace")
                    return
                async for line in lines_of(response.aiter_bytes()):
                    yield 200, line.decode(errors="replace")
        except self._not_there as error:
            raise self._away() from error
        except self._errors as error:
            raise EngineGone(f"vLLM broke off in the middle of an answer ({type(error).__name__})") from error

    async def close(self) -> None:
        """Close the connections; the server goes on."""
        await self._client.aclose()

    def _away(self) -> EngineStarting:
        return EngineStarting(f"no vLLM answers at {self.url}", AGAIN)


@dataclass(frozen=True)
class _Placed:
    """A model and its name in vLLM; ``placed.Placed``."""

    served: Served
    server: Vllm
    model: str
    leases: Leases
    load: Callable[[], Awaitable[None]]

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | End, None]:
        body = body_of(self.model, ask, self.served.renderer)
        for is_retry in (False, True):
            lines = self.server.stream("/v1/completions", body)
            try:
                async for status, line in lines:
                    if status == 404 and not is_retry:
                        break
                    if status != 200:
                        raise EngineGone(f"vLLM refused a request ({status}): {reason_of(line)}")
                    async for piece in _read(line, lines, ask, self.served.renderer):
                        yield piece
                    return
                else:
                    raise EngineGone("vLLM broke off in the middle of an answer")
            finally:
                await lines.aclose()
            try:
                await self.load()
            except ExportError as error:
                raise EngineGone(error.message) from error


class VllmModels(PlacedModels[_Placed]):
    """``asking.Models`` with vLLM; made by ``open``.

    Args:
        server: where it runs.
        find: what of a run can be served.
    """

    def __init__(self, server: Vllm, find: Find):
        super().__init__()
        self._server, self._find = server, find
        self._entries: dict[str, Entry] = {}
        self._living: list[Leases] = []
        self._changing = asyncio.Lock()
        self._base, self._context = "", 0

    @classmethod
    async def open(cls, server: Vllm, entries: Sequence[Entry], find: Find) -> "VllmModels":
        """Find the base of a server, and load the adapters of some runs.

        Args:
            entries: from the catalogue, at least one.
            find: for those that are added later.

        Raises:
            ExportError: no vLLM answers there, it has another base, or it cannot load an adapter.
            RunError: a run without an adapter, or two of one name.
        """
        models = cls(server, find)
        try:
            await models._meet(entries)
            for entry in entries:
                await models._place(entry, is_named=False)
        except EngineStarting as error:
            await models.close()
            raise ExportError(str(error), f"start it: {start_command(entries, server.url)}") from error
        except (TunesmithError, EngineGone):
            await models.close()
            raise
        return models

    async def add(self, run: Path, name: str | None = None, *, force: bool = False) -> Served:
        """See ``asking.Models``.

        Raises:
            TunesmithError: nothing deployable there, or vLLM cannot load it; all stays as it was.
            EngineGone: vLLM does not answer.
        """
        async with self._changing:
            entry = await asyncio.to_thread(self._find, run, name, force)
            await self._place(entry, is_named=name is not None)
            return self._placed[entry.served.name].served

    async def remove(self, name: str) -> None:
        """See ``asking.Models``.

        Raises:
            KeyError: no adapter of that name.
        """
        async with self._changing:
            del self._entries[name]
            placed = self._placed[name]
            self._placed = {other: kept for other, kept in self._placed.items() if other != name}
            placed.leases.retire()

    async def close(self) -> None:
        """Unload the adapters and leave the server as it was."""
        self._placed = {}
        await asyncio.gather(*(leases.end() for leases in self._living))
        await self._server.close()

    async def _meet(self, entries: Sequence[Entry]) -> None:
        """Find the base, and hold its tokens against the renderer's.

        Raises:
            ExportError: it is no vLLM, or another model.
            EngineGone: it does not answer.
        """
        status, text = await self._server.ask("/v1/models")
        if status != 200:
            hint = "it wants a key: --url-key-env NAME" if status in (401, 403) else "is it vLLM's address?"
            raise ExportError(f"{self._server.url}: vLLM answers {status}: {reason_of(text)}", hint)
        try:
            known = next(model for model in json.loads(text)["data"] if model.get("parent") is None)
            self._base, self._context = known["id"], int(known["max_model_len"])
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ExportError(f"{self._server.url}: does not list its models as vLLM does", "is it vLLM's address?") from error
        first = entries[0].served
        control = first.renderer.vocabulary.control
        body = {"model": self._base, "prompt": "".join(control), "add_special_tokens": False}
        status, text = await self._server.ask("/tokenize", body)
        if status != 200 or json.loads(text)["tokens"] != list(control.values()):
            raise ExportError(
                f"{self._server.url}: {self._base} has other tokens than the model that was trained",
                f"start vLLM with the base of the runs: {start_command(entries, self._server.url)}",
            )
        base = entries[0].base
        assert base is not None
        served = replace(base, context=self._context, form=f"{self._base} in vLLM")
        self._placed[base.name] = _Placed(served, self._server, self._base, Leases(_nothing), _nothing)

    async def _place(self, entry: Entry, is_named: bool) -> None:
        """Load an adapter, prove that it does something, and let its name lead to it.

        Raises:
            RunError: a name that something else has, or no adapter.
            ExportError: vLLM cannot load it, or answers as the base does.
            EngineGone: vLLM does not answer.
        """
        name, run, old = entry.served.name, entry.served.run, self._placed.get(entry.served.name)
        if old is not None and (old.served.run is None or (not is_named and old.served.run != run)):
            raise RunError(f"{name}: is the name of {old.served.run or 'the base'} already", "give another: NAME=RUN")
        directory, model = await asyncio.to_thread(_kept, entry), f"{name}@{entry.served.version}"

        async def load() -> None:
            status, text = await self._server.ask("/v1/load_lora_adapter", {"lora_name": model, "lora_path": str(directory)})
            if status != 200 and "already" not in text:
                wants = "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" if status == 404 else "see vLLM's own log"
                raise ExportError(f"{name}: vLLM does not load the adapter ({status}): {reason_of(text)}", wants)

        async def unload() -> None:
            self._living.remove(leases)
            try:
                await self._server.ask("/v1/unload_lora_adapter", {"lora_name": model})
            except EngineGone as error:
                logger.warning(f"serve: {model} was not unloaded: {error}")

        if old is not None and old.model == model:
            await load()
            return
        await load()
        leases = Leases(unload)
        self._living.append(leases)
        served = replace(entry.served, context=self._context, form="adapter in vLLM")
        placed = _Placed(served, self._server, model, leases, load)
        try:
            await self._refuse_without_effect(placed)
        except (ExportError, EngineGone):
            await leases.end()
            raise
        self._entries[name] = entry
        self._placed = {**self._placed, name: placed}
        if old is not None:
            old.leases.retire()
        logger.info(f"serve: {name} is served, version {served.version}")

    async def _refuse_without_effect(self, placed: _Placed) -> None:
        """Refuse an adapter that answers exactly as the base.

        Raises:
            ExportError: it does.
            EngineGone: vLLM does not answer.
        """
        ids = tuple(placed.served.renderer.prompt_ids([{"role": "user", "content": "What is this?"}]))
        ask = Ask(prompt=ids, max_tokens=PROBE, logprobs=0)
        base = next(other for other in self._placed.values() if other.served.run is None)
        told = [[piece.tokens async for piece in one.answer(ask) if isinstance(piece, Piece)] for one in (base, placed)]
        if told[0] == told[1]:
            raise ExportError(
                f"{placed.served.name}: vLLM answers as the base does, to the last bit; it does not apply the adapter",
                "do its layers have the names that vLLM expects? tunesmith export writes export/adapter-vllm where they do not",
            )


async def _nothing() -> None:
    """Of the base, which nobody loads or unloads here."""


def start_command(entries: Sequence[Entry], url: str) -> str:
    """How to start the vLLM that serves some runs."""
    first, context = entries[0], max(entry.served.context for entry in entries)
    argv = ["vllm", "serve", first.base_model, "--enable-lora", "--max-lora-rank", str(max(entry.rank for entry in entries))]
    argv += ["--max-loras", str(len(entries) + SPARE), "--max-model-len", str(context)]
    argv += ["--structured-outputs-config.backend", "guidance", "--enable-prompt-tokens-details"]
    place = urlsplit(url)
    return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 {shlex.join([*argv, '--host', str(place.hostname), '--port', str(place.port)])}"


def _kept(entry: Entry) -> Path:
    """The adapter's own copy, in a directory that is named after its content."""
    target = hardware.cache_dir() / "serving" / entry.served.version
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(target) as directory:
            for file in entry.model.iterdir():
                if file.suffix in (".json", ".safetensors"):
                    shutil.copy(file, directory / file.name)
    return target


def body_of(model: str, ask: Ask, renderer: Renderer) -> Json:
    """A request to ``/v1/completions``, every number of the sampling given."""
    body: Json = {
        "model": model,
        "prompt": list(ask.prompt),
        "max_tokens": ask.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": list(ask.stop),
        "stop_token_ids": list(renderer.stop_ids),
        "skip_special_tokens": not ask.show_control,
        "spaces_between_special_tokens": False,
        **_sampling(ask.sampling),
    }
    if ask.logprobs is not None:
        body |= {"logprobs": ask.logprobs, "return_tokens_as_token_ids": True}
    if ask.grammar is not None:
        body["structured_outputs"] = {"grammar": ask.grammar}
    return body


def _sampling(sampling: Sampling) -> Json:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": 1.0,
        "seed": sampling.seed,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
    }


async def _read(
    first: str, lines: AsyncIterator[tuple[int, str]], ask: Ask, renderer: Renderer
) -> AsyncGenerator[Piece | End, None]:
    """The pieces of a stream whose first line was read.

    Raises:
        EngineGone: it says an error, or ends without an end.
    """
    finish: _Choice | None = None
    line = first
    while True:
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line[6:])
            if "error" in event:
                raise EngineGone(f"vLLM broke off in the middle of an answer: {reason_of(line[6:])}")
            for choice in event["choices"]:
                finish = choice if choice.get("finish_reason") else finish
                if piece := _piece(choice, ask, renderer):
                    yield piece
            if event.get("usage") and not event["choices"] and finish is not None:
                yield _end(finish, event["usage"])
                return
        entry = await anext(lines, None)
        if entry is None:
            raise EngineGone("vLLM broke off in the middle of an answer")
        line = entry[1]


def _end(choice: _Choice, usage: _Usage) -> End:
    reason, stopped = choice["finish_reason"], choice.get("stop_reason")
    if reason not in ("stop", "length"):
        raise EngineGone(f"vLLM ended an answer with {reason}")
    details = usage.get("prompt_tokens_details") or {}
    return End(
        reason="length" if reason == "length" else "stop",
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
        new_tokens=usage["completion_tokens"],
        stop=stopped if isinstance(stopped, str) else None,
    )


def _piece(choice: _Choice, ask: Ask, renderer: Renderer) -> Piece | None:
    tokens: list[Token] = []
    if ask.logprobs is not None and (told := choice.get("logprobs")):
        for name, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"] or (), strict=False):
            taken = _likely(name, logprob, renderer)
            if taken.id in renderer.stop_ids:
                continue
            others = sorted((top or {}).items(), key=lambda entry: -entry[1])[: ask.logprobs]
            tokens.append(Token(taken, tuple(_likely(other, value, renderer) for other, value in others)))
    return Piece(choice["text"], tuple(tokens)) if choice["text"] or tokens else None


def _likely(name: str, logprob: float, renderer: Renderer) -> Likely:
    """A token of vLLM's, written ``token_id:17``."""
    number = int(name.removeprefix("token_id:"))
    return Likely(number, token_bytes(renderer, number), logprob)


def token_bytes(renderer: Renderer, number: int) -> bytes:
    """What a token stands for; one may be a part of a character."""
    text = str(renderer.tokenizer.decode([number]))
    if "\ufffd" not in text:
        return text.encode()
    token = str(renderer.tokenizer.convert_ids_to_tokens(number))
    if (one := re.fullmatch(r"<0x([0-9A-F]{2})>", token)) is not None:
        return bytes([int(one[1], 16)])
    return bytes([BYTES[letter] for letter in token]) if all(letter in BYTES for letter in token) else text.encode()
