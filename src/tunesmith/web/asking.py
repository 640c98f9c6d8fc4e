"""One question to a running server of models, by OpenAI's API, and what it says.

The browser asks us and we ask the server: so it needs no key, and the page stays within its own address. Nothing is followed
elsewhere (a redirect would take the key along), and an answer that is larger than any answer is cut off.
"""

import json
import math
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import cast
from urllib.error import HTTPError
from urllib.parse import urlsplit

from pydantic import JsonValue

from tunesmith.errors import RunError
from tunesmith.messages import Message

SECONDS = 180.0
LARGEST = 4_000_000  # bytes of an answer

Object = dict[str, JsonValue]


@dataclass(frozen=True)
class Model:
    """A model of the server.

    Attributes:
        name: that it is asked by.
        parent: the base's name; None where it is a base, or one file with everything in it.
        run: name of the run directory; None where it is of no run, or the server is not ours.
    """

    name: str
    parent: str | None
    run: str | None


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer.

    Attributes:
        tokens: text, id and probability of each, where they were asked for; no id or probability where the server gives none.
        finish: why it ended.
        prompt_tokens, new_tokens: as the server counted; None where it did not.
    """

    text: str
    tokens: tuple[tuple[str, int | None, float | None], ...] = ()
    finish: str = ""
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: object, fp: object, code: int, msg: str, headers: object, newurl: str) -> None:
        """Follow nothing."""
        return None


class ModelServer:
    """A server of models.

    Args:
        address: up to ``/v1``, or without it.
        key: that it asks for.

    Raises:
        RunError: no such address.
    """

    def __init__(self, address: str, key: str | None):
        url = urlsplit(address)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            raise RunError(
                f"--serve: {address}: is no address of a server", "as tunesmith serve prints it: http://127.0.0.1:8000"
            )
        self.address = address.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def models(self) -> list[Model]:
        """What it serves.

        Raises:
            RunError: it cannot be reached, or says something else.
        """
        models: list[Model] = []
        for entry in _list(self._call("/v1/models"), "data"):
            ours = entry.get("tunesmith")
            run = ours.get("run") if isinstance(ours, dict) else None
            models.append(Model(_text(entry, "id") or "", _text(entry, "parent"), run if isinstance(run, str) else None))
        return models

    def ask(self, model: str, messages: Sequence[Message], with_tokens: bool) -> Said:
        """What a model answers, with the server's own sampling.

        Raises:
            RunError: it cannot be reached, refuses, or says something else.
        """
        body: Object = {"model": model, "messages": cast(JsonValue, list(messages))}
        if with_tokens:
            body["logprobs"] = True
        answer = self._call("/v1/chat/completions", body)
        choice = next(iter(_list(answer, "choices")), {})
        message, usage, logprobs = choice.get("message"), answer.get("usage"), choice.get("logprobs")
        if not isinstance(message, dict):
            raise RunError(f"{self.address}: an answer without a message", "is it a server of models?")
        calls = message.get("tool_calls")
        text = _text(message, "content") or ""
        counted = usage if isinstance(usage, dict) else {}
        return Said(
            text=f"{text}\n{json.dumps(calls, indent=1, ensure_ascii=False)}".strip() if calls else text,
            tokens=tuple(_token(token) for token in _list(logprobs if isinstance(logprobs, dict) else {}, "content")),
            finish=_text(choice, "finish_reason") or "",
            prompt_tokens=_count(counted, "prompt_tokens"),
            new_tokens=_count(counted, "completion_tokens"),
        )

    def _call(self, path: str, body: Object | None = None) -> Object:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, self._headers)
        try:
            with self._opener.open(request, timeout=SECONDS) as answer:
                content = answer.read(LARGEST)
        except HTTPError as error:
            raise RunError(f"{self.address}: {_refusal(error)}", "the log of the server may say more") from error
        except (OSError, HTTPException) as error:
            hint = "is it running? start it with: tunesmith serve RUN"
            raise RunError(f"{self.address}: cannot be reached: {error}", hint) from error
        try:
            value: JsonValue = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.address}: an answer that is no JSON", "is it a server of models?") from error
        if not isinstance(value, dict):
            raise RunError(f"{self.address}: an answer that is no object", "is it a server of models?")
        return value


def _refusal(error: HTTPError) -> str:
    """The server's own words, where it has some in OpenAI's shape."""
    try:
        value: JsonValue = json.loads(error.read(LARGEST))
    except (ValueError, RecursionError, OSError):
        value = None
    told = value.get("error") if isinstance(value, dict) else None
    message = told.get("message") if isinstance(told, dict) else None
    return f"{error.code}: {message if isinstance(message, str) else error.reason}"


def _list(value: Object, name: str) -> list[Object]:
    entries = value.get(name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _text(value: Object, name: str) -> str | None:
    text = value.get(name)
    return text if isinstance(text, str) else None


def _count(value: Object, name: str) -> int | None:
    count = value.get(name)
    return count if isinstance(count, int) else None


def _token(token: Object) -> tuple[str, int | None, float | None]:
    logprob = token.get("logprob")
    probability = math.exp(min(0.0, logprob)) if isinstance(logprob, int | float) else None
    return _text(token, "token") or "", _count(token, "id"), probability
