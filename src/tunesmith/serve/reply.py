"""What both kinds of completion write: one object at the end, or chunks as the answer comes, and the count of tokens.

A reply takes the items of all its answers and hands out chunks; whoever wants one object drops those and asks for the whole. So
an answer that is streamed and one that is not are read by the same code and cannot differ.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from pydantic import JsonValue

from tunesmith.serve.asking import End, Likely, Piece, Served

Object = dict[str, JsonValue]
UNLIKELY = -9999.0  # OpenAI's number for a probability of nothing


class Reply(Protocol):
    """What a request is answered with."""

    def take(self, number: int, item: Piece | End) -> Iterator[Object]:
        """The next item of an answer; the chunks that it makes."""
        ...

    def whole(self) -> Object:
        """All answers as one object, when all have ended."""
        ...

    def usage_chunk(self) -> Object:
        """The last chunk of a stream that counts its tokens."""
        ...


class Envelope:
    """What every object and chunk of a reply has.

    Args:
        prefix: of its id.
        served: the model that answers.
        answers: how many of them there are.
        prompts: how many of them are first answers to their prompt, whose tokens are counted; the others repeat it.
    """

    def __init__(self, prefix: str, served: Served, answers: int, prompts: int = 1):
        self._head: Object = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
        self._fingerprint = served.version
        self._ends: dict[int, End] = {}
        self._choices = answers // prompts

    def ended(self, number: int, end: End) -> None:
        """An answer has ended so."""
        self._ends[number] = end

    def of(self, kind: str, choices: list[JsonValue], more: Mapping[str, JsonValue] | None = None) -> Object:
        """An object of a kind with these choices."""
        return {**self._head, "object": kind, "choices": choices, "system_fingerprint": self._fingerprint, **(more or {})}

    def usage(self) -> Object:
        """The tokens of all answers; a prompt that is answered several times counts once."""
        first = [end for number, end in self._ends.items() if number % self._choices == 0]
        prompt, new = sum(end.prompt_tokens for end in first), sum(end.new_tokens for end in self._ends.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in first), "audio_tokens": 0},
        }


def text_of(likely: Likely) -> str:
    """A token as text; half a character is a replacement character."""
    return likely.text.decode("utf-8", "replace")


def logprob_of(likely: Likely) -> float:
    """A log-probability that JSON can say."""
    return max(likely.logprob, UNLIKELY)
