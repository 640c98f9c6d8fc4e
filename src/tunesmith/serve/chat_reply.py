"""A chat completion as OpenAI writes it, whole or in chunks.

Beside its fields a message has ``reasoning_content`` where the model thought, the name under which other servers give it and
templates read it, and a token of ``logprobs`` has its ``id``. The ids of calls are nine letters and digits, since some
templates refuse any other. ``bytes`` of a token are those that it stands for, which may be half a character.

Source: openai-python ``types/chat``.
"""

import secrets
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from tunesmith.rundir.records.calls import Call
from tunesmith.serve.answer_reader import AnswerReader, Part
from tunesmith.serve.asking import End, Likely, Piece, Served, Token
from tunesmith.serve.habits import Thinking
from tunesmith.serve.reply import Envelope, Object, logprob_of, text_of
from tunesmith.serve.request_tools import Calling

_LETTERS = string.ascii_letters + string.digits


@dataclass
class _Choice:
    """One answer so far."""

    reader: AnswerReader
    reasoning: str = ""
    content: str = ""
    calls: list[JsonValue] = field(default_factory=list)
    tokens: list[JsonValue] = field(default_factory=list)
    finish: str = ""
    begun: bool = False


class ChatReply:
    """The answers to one chat request.

    Args:
        served: the model that answers.
        choices: how many answers.
        calling, thinking: how they are read.
        logprobs: whether tokens were asked for.
        counted: whether a stream ends with usage; its other chunks then say ``null``.
    """

    def __init__(
        self,
        served: Served,
        choices: int,
        calling: Calling,
        thinking: Thinking | None,
        *,
        logprobs: bool,
        counted: bool,
    ):
        self._envelope = Envelope("chatcmpl", served, choices)
        self._choices = [_Choice(AnswerReader(calling, thinking)) for _ in range(choices)]
        self._logprobs = logprobs
        self._more: Object = {"usage": None} if counted else {}

    def take(self, number: int, item: Piece | End) -> Iterator[Object]:
        """See ``Reply``."""
        choice = self._choices[number]
        if not choice.begun:
            choice.begun = True
            yield self._chunk(number, {"role": "assistant", "content": "", "refusal": None})
        if isinstance(item, Piece):
            tokens = [_token(token) for token in item.tokens]
            yield from self._part(number, choice.reader.feed(item.text), tokens)
            return
        yield from self._part(number, choice.reader.finish(), [])
        choice.finish = "tool_calls" if choice.calls and item.reason == "stop" else item.reason
        self._envelope.ended(number, item)
        yield self._chunk(number, {}, finish=choice.finish)

    def _part(self, number: int, part: Part, tokens: list[JsonValue]) -> Iterator[Object]:
        choice = self._choices[number]
        choice.reasoning += part.reasoning
        choice.content += part.content
        choice.tokens += tokens
        if part.reasoning:
            yield self._chunk(number, {"reasoning_content": part.reasoning})
        if part.content or tokens:
            yield self._chunk(number, {"content": part.content}, tokens)
        for call in part.calls:
            written = _call(call)
            yield self._chunk(number, {"tool_calls": [{"index": len(choice.calls), **written}]})
            choice.calls.append(written)

    def _chunk(self, number: int, delta: Object, tokens: Sequence[JsonValue] = (), finish: str | None = None) -> Object:
        logprobs: JsonValue = {"content": list(tokens), "refusal": None} if self._logprobs and tokens else None
        choice: Object = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._envelope.of("chat.completion.chunk", [choice], self._more)

    def whole(self) -> Object:
        """See ``Reply``."""
        choices: list[JsonValue] = []
        for number, choice in enumerate(self._choices):
            message: Object = {"role": "assistant", "content": choice.content, "refusal": None}
            if choice.reasoning:
                message["reasoning_content"] = choice.reasoning
            if choice.calls:
                message["tool_calls"] = choice.calls
                message["content"] = choice.content or None
            logprobs: JsonValue = {"content": choice.tokens, "refusal": None} if self._logprobs else None
            choices.append({"index": number, "message": message, "logprobs": logprobs, "finish_reason": choice.finish})
        return self._envelope.of("chat.completion", choices, {"usage": self._envelope.usage()})

    def usage_chunk(self) -> Object:
        """See ``Reply``."""
        return self._envelope.of("chat.completion.chunk", [], {"usage": self._envelope.usage()})


def _call(call: Call) -> Object:
    number = "".join(secrets.choice(_LETTERS) for _ in range(9))
    return {"id": number, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _token(token: Token) -> JsonValue:
    return {**_likely(token.taken), "top_logprobs": [_likely(other) for other in token.top]}


def _likely(likely: Likely) -> Object:
    return {
        "id": likely.id,
        "token": text_of(likely),
        "bytes": list(likely.text),
        "logprob": logprob_of(likely),
    }
