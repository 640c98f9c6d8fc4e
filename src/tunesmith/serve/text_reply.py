"""A text completion as OpenAI writes it, whole or in chunks.

Source: openai-python ``types/completion.py``, ``types/completion_choice.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import JsonValue

from tunesmith.serve.asking import End, Piece, Served, Token
from tunesmith.serve.reply import Envelope, Object, logprob_of, text_of

KIND = "text_completion"


@dataclass
class _Choice:
    """One answer so far."""

    text: str = ""
    finish: str = ""
    tokens: list[Token] = field(default_factory=list)


class TextReply:
    """The answers to one text completion; answer number p * n + i is the i-th to prompt p.

    Args:
        served: the model that answers.
        answers: how many there are.
        prompts: to how many prompts.
        logprobs: whether tokens were asked for.
        counted: whether a stream ends with usage; its other chunks then say ``null``.
    """

    def __init__(self, served: Served, answers: int, prompts: int, *, logprobs: bool, counted: bool):
        self._envelope = Envelope("cmpl", served, answers, prompts)
        self._choices = [_Choice() for _ in range(answers)]
        self._logprobs = logprobs
        self._more: Object = {"usage": None} if counted else {}

    def take(self, number: int, item: Piece | End) -> Iterator[Object]:
        """See ``Reply``."""
        choice = self._choices[number]
        if isinstance(item, Piece):
            shown = self._shown(item.tokens, len(choice.text))
            choice.text += item.text
            choice.tokens += item.tokens
            yield self._envelope.of(KIND, [self._choice(number, item.text, shown, None)], self._more)
            return
        choice.finish = item.reason
        self._envelope.ended(number, item)
        yield self._envelope.of(KIND, [self._choice(number, "", None, item.reason)], self._more)

    def whole(self) -> Object:
        """See ``Reply``."""
        choices: list[JsonValue] = [
            self._choice(number, choice.text, self._shown(tuple(choice.tokens), 0), choice.finish)
            for number, choice in enumerate(self._choices)
        ]
        return self._envelope.of(KIND, choices, {"usage": self._envelope.usage()})

    def usage_chunk(self) -> Object:
        """See ``Reply``."""
        return self._envelope.of(KIND, [], {"usage": self._envelope.usage()})

    def _choice(self, number: int, text: str, logprobs: JsonValue, finish: str | None) -> JsonValue:
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": finish}

    def _shown(self, tokens: tuple[Token, ...], offset: int) -> JsonValue:
        if not self._logprobs:
            return None
        texts, offsets = [text_of(token.taken) for token in tokens], list[JsonValue]()
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": list[JsonValue](texts),
            "token_logprobs": [logprob_of(token.taken) for token in tokens],
            "top_logprobs": [{text_of(top): logprob_of(top) for top in token.top} for token in tokens],
            "text_offset": offsets,
        }
