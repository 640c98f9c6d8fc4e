"""Greedy decoding by any OpenAI-compatible endpoint: a hosted model, vLLM, Ollama, llama-server, our own server.

A hosted frontier model with a good prompt is a fair rival of a tuned small one. It is asked over ``POST /chat/completions``
with temperature 0, several requests at a time, and what it says is taken as the other engines' answers are: the text without
its end-of-turn token, ``finished`` where the endpoint says ``stop``, and the tokens from its own ``usage``.

**Failures.** What may pass is tried again (no connection, time-outs, 408, 409, 429 and 5xx), after a pause that doubles from
half a second and has a quarter of chance in it, or as long as ``Retry-After`` asks; everything else ends the call with what
the endpoint said, where, and a hint. Answers that came before are lost with the call; arms are cached whole.

**The key** is named in the recipe and read from the environment when the engine is made (``hardware.secret``). It is in the
headers of the requests and nowhere else: an endpoint that repeats it in an error has it struck out.

**Tools** that a row declares go along as ``tools``, and the calls of an answer are those that the endpoint's own parser took
out (``tool_calls``); a call that it left in the text is lost, as it would be for any user of it (``engines/wire.py``).

**A schema** goes along as ``response_format``. Some servers take that field and ignore it, so every finished answer is
checked against the schema, and one that does not meet it is an error. Labels go as an object with one of them, and the label
is the answer; what it costs in tokens is the endpoint's own count.

**Proxies** are those of the environment (``HTTPS_PROXY``, ``NO_PROXY``); an endpoint of this machine is asked directly.

``httpx2`` is what transformers' hub client brings anyway. Refused: the ``openai`` package, which reads ten
environment variables of its own, among them another base URL, and retries where we could not count it.

Source: OpenAI API reference, "Create chat completion"; RFC 9110 section 10.2.3 for ``Retry-After``.
"""

import json
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import jsonschema

from tunesmith import hardware
from tunesmith.engines.engine import Advance, Answer, Constraint, Scored
from tunesmith.engines.wire import calls_of_reply, wire_messages
from tunesmith.errors import MissingPackage, RecipeError, RunError
from tunesmith.messages import Message, Tools
from tunesmith.rundir.records import Json

if TYPE_CHECKING:
    import httpx2

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds
PASSING = {408, 409, 429, 500, 502, 503, 504, 529}
HINTS = {
    401: "is the key right? it is read from the environment variable that api_key_env names",
    403: "may this key use the model?",
    404: "check base_url (it ends in /v1 as a rule) and the model's name",
    413: "the prompt is too long for the endpoint",
    429: "lower concurrency, or wait for the quota",
}


class OpenAIEndpoint:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        base_url: up to and including ``/v1``.
        model: as the endpoint calls it.
        api_key_env: name of the environment variable that holds the key; None for an endpoint without one.
        headers: more headers of every request.
        body: more keys of every request; None as a value leaves one of ours out, as in ``{"temperature": None, "max_tokens":
            None, "max_completion_tokens": 400}`` for models that reason.
        timeout: seconds that one request may take.
        concurrency: requests under way at a time.
        retries: how often a request is tried again.

    Raises:
        RecipeError: the URL is none, or the variable is not set.
        MissingPackage: httpx2 is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        concurrency: int = 4,
        retries: int = 5,
    ):
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise MissingPackage("an endpoint needs the package httpx2", "run: pip install 'tunesmith[endpoint]'") from error
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            raise RecipeError(
                "base_url is not the plain URL of an endpoint", "as https://api.example.com/v1; keys go to api_key_env"
            )
        self._key = None
        sent = dict(headers or {})
        if api_key_env is not None:
            self._key = hardware.secret(api_key_env)
            if self._key is None:
                raise RecipeError(
                    f"api_key_env: the environment variable {api_key_env} is not set", f"run: export {api_key_env}=..."
                )
            if not (self._key.isascii() and self._key.isprintable()):
                raise RecipeError(
                    f"api_key_env: {api_key_env} holds characters that no header can carry", "is there a line break?"
                )
            sent["Authorization"] = f"Bearer {self._key}"
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._model, self._body = model, dict(body or {})
        self._concurrency, self._retries = concurrency, retries
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        times = httpx2.Timeout(timeout, connect=min(timeout, 10.0))
        has_proxy = not hardware.is_loopback(url.hostname)  # of the environment: what stays on this machine goes to none
        self._client = httpx2.Client(headers=sent, timeout=times, limits=limits, trust_env=has_proxy)
        self._passing = (httpx2.RequestError,)

    def __enter__(self) -> "OpenAIEndpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def refuse_unreachable(self) -> None:
        """Ask for the list of models once, so that a wrong address or key is known before an hour of other work.

        A server that has no such list, or is busy, passes.

        Raises:
            RunError: nobody answers at the address, or the key is refused.
        """
        url = f"{self._url.removesuffix('/chat/completions')}/models"
        try:
            response = self._client.get(url)
        except self._passing as error:
            raise RunError(f"{url}: {self._excerpt(str(error) or type(error).__name__)}", "is the endpoint up?") from error
        if response.status_code == 401:
            raise self._refused(response)

    def generate(
        self,
        prompts: list[list[Message]],
        max_new_tokens: int,
        advance: Advance,
        allowed: Constraint | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> list[Answer]:
        """See ``Engine``. The seconds of an answer are those of the try that was answered, the network included.

        Raises:
            RunError: the endpoint cannot be reached, refuses, or answers with something else than a chat completion; an
                answer does not meet the schema.
        """
        answers: dict[int, Answer] = {}
        stop = Event()  # one failure ends the call; who waits to try again need not
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            declared = tools or [None] * len(prompts)
            jobs = {
                pool.submit(self._answer, prompt, own, max_new_tokens, allowed, stop): n
                for n, (prompt, own) in enumerate(zip(prompts, declared, strict=True))
            }
            for job in as_completed(jobs):
                answers[jobs[job]] = job.result()
                advance(1)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        in_order = [answers[number] for number in range(len(prompts))]
        return in_order if tools is not None else [replace(answer, calls=None) for answer in in_order]

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """Not to be had: a chat completion gives log-probabilities of what it says, none of what it is given.

        Raises:
            RunError: always.
        """
        raise RunError(f"{self._url}: no log-probability of a given answer", "score with the engine in process")

    def _answer(
        self, prompt: list[Message], tools: Tools, max_new_tokens: int, allowed: Constraint | None, stop: Event
    ) -> Answer:
        request: dict[str, Any] = {
            "model": self._model,
            "messages": wire_messages(prompt),
            "temperature": 0,
            "max_tokens": max_new_tokens,
            "tools": tools or None,
        }
        schema = _one_label(allowed) if isinstance(allowed, tuple) else allowed
        if schema is not None:
            json_schema = {"name": "answer", "schema": schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
            request["tool_choice"] = "none" if tools else None
        request = {key: value for key, value in (request | self._body).items() if value is not None}
        reply, seconds = self._post(request, stop)
        try:
            choice, usage = reply["choices"][0], reply["usage"]
            (text, calls), finish = calls_of_reply(choice["message"], tools), choice["finish_reason"]
            counts = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{self._url}: not a chat completion with usage: {self._excerpt(json.dumps(reply))}",
                "is it an OpenAI-compatible endpoint?",
            ) from error
        answer = Answer(text, *counts, seconds, finish in ("stop", "tool_calls"), calls)
        if schema is not None and answer.finished and answer.text:
            parsed = self._checked(answer.text, schema)
            answer = replace(answer, text=parsed["label"]) if isinstance(allowed, tuple) else answer
        return answer

    def _post(self, request: dict[str, Any], stop: Event) -> tuple[dict[str, Any], float]:
        """Ask until there is an answer or an error that will not pass; with the seconds of the try that was answered."""
        attempt = 0
        while True:
            started = time.perf_counter()
            wait = None
            try:
                response = self._client.post(self._url, json=request)
            except self._passing as error:
                failure = RunError(f"{self._url}: {self._excerpt(str(error) or type(error).__name__)}", "is the endpoint up?")
            else:
                if response.status_code == 200:
                    return self._parsed(response), time.perf_counter() - started
                failure = self._refused(response)
                if response.status_code not in PASSING:
                    raise failure
                wait = _retry_after(response.headers.get("retry-after"))
            pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
            attempt += 1
            if attempt > self._retries or stop.wait(pause if wait is None else min(wait, LONGEST_PAUSE)):
                raise RunError(f"{failure.message} ({attempt} tries)", failure.hint)

    def _parsed(self, response: "httpx2.Response") -> dict[str, Any]:
        try:
            reply = response.json()
        except ValueError as error:
            raise RunError(f"{self._url}: no JSON: {self._excerpt(response.text)}", HINTS[404]) from error
        if not isinstance(reply, dict):
            raise RunError(f"{self._url}: not a chat completion: {self._excerpt(response.text)}", HINTS[404])
        return reply

    def _refused(self, response: "httpx2.Response") -> RunError:
        """What a status other than 200 means."""
        hint = HINTS.get(response.status_code, "see what the endpoint says; body adds keys to the request or leaves ours out")
        return RunError(f"{self._url}: {response.status_code} for model {self._model}: {self._excerpt(response.text)}", hint)

    def _checked(self, text: str, schema: Json) -> Any:
        """The answer as JSON."""
        try:
            parsed = json.loads(text)
            jsonschema.validate(parsed, schema)
        except (ValueError, jsonschema.ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{self._url}: an answer does not meet the schema that was asked for ({reason}): {self._excerpt(text)}",
                "the endpoint ignores response_format; decode freely there",
            ) from error
        return parsed

    def _excerpt(self, text: str) -> str:
        """The beginning of what the endpoint said, without the key."""
        if self._key is not None:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:300]


def _one_label(labels: tuple[str, ...]) -> Json:
    """Schema of an object that holds one of the labels: what ``response_format`` knows is an object at the top."""
    label = {"type": "string", "enum": list(labels)}
    return {"type": "object", "properties": {"label": label}, "required": ["label"], "additionalProperties": False}


def _retry_after(value: str | None) -> float | None:
    """Seconds, where the header is a number; a date is as good as none."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None
