"""Render a conversation with the model's own chat template, and mark what is supervised.

Supervised is what the assistant says and the token that ends its turn: nothing else, and never less. A peer that masks
by ``pad == eos`` loses the end of turn (in many models they are one token) and trains a model that never stops; one
that searches for marker strings trains on tool results. Here the template itself is asked: an assistant turn is the
text between what the template writes up to the generation prompt and what it writes once the turn is added. The first
must be a prefix of the second, which is checked for every turn; a template that rewrites earlier turns is refused.

The end of a turn is the last added (special) token in that text; the line break that some templates put after it
belongs to nobody. Ids are those of ``apply_chat_template`` on the whole conversation.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.errors import DataError, ModelError

Message = dict[str, str]


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation, and which of them are supervised (1) or context (0)."""

    ids: list[int]
    supervised: list[int]


class Renderer:
    """A tokenizer's chat template, checked once.

    Attributes:
        stop_ids: the tokens that end an answer: the template's end of turn and the tokenizer's eos.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template", "choose an instruction-tuned model")
        self.tokenizer = tokenizer
        self._added = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        probe = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        end_of_turn = [i for i, s in zip(probe.ids, probe.supervised, strict=True) if s][-1]
        self.stop_ids = sorted({end_of_turn, *_as_ids(tokenizer.eos_token_id)})

    def text(self, messages: list[Message], *, generate: bool = False) -> str:
        """The conversation as the template writes it; with ``generate``, up to where the assistant begins to speak."""
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        assert isinstance(rendered, str)
        return rendered

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Token ids of a prompt that the assistant is to answer."""
        return self._encode(self.text(messages, generate=True))["input_ids"]

    def answer_ids(self, messages: list[Message]) -> list[int]:
        """Token ids of the last turn's content alone, plus one for its end of turn."""
        return [*self._encode(messages[-1]["content"])["input_ids"], self.stop_ids[0]]

    def render(self, messages: list[Message]) -> Rendered:
        """Token ids and supervision of a conversation that ends with an answer.

        Raises:
            ModelError: the template rewrites earlier turns or writes no end-of-turn token.
            DataError: a token straddles the border between the prompt and the answer, or a character has no token.
        """
        text = self.text(messages)
        encoded = self._encode(text)
        ids: list[int] = encoded["input_ids"]
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        self._refuse_lost_characters(text, ids)
        supervised = [0] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, end = self._turn(text, messages, index)
            inside = [t for t, (a, b) in enumerate(offsets) if a < end and b > start]
            if offsets[inside[0]][0] < start:
                raise DataError(
                    f"messages[{index}]: its first token begins before the answer does",
                    "the answer begins with white space that the template's line break swallows; remove it",
                )
            stops = [t for t in inside if ids[t] in self._added]
            if not stops:
                raise ModelError(
                    "the chat template ends an answer without a special token, so a tuned model would never stop",
                    "choose a model whose template has an end-of-turn token",
                )
            for token in inside:
                supervised[token] = int(token <= stops[-1])
        return Rendered(ids, supervised)

    def _refuse_lost_characters(self, text: str, ids: list[int]) -> None:
        """Refuse text that does not come back: some byte-level vocabularies lack bytes and drop them in silence."""
        back = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(back, str)
        written, read = "".join(text.split()), "".join(back.split())
        if written != read:
            place = next((i for i, (a, b) in enumerate(zip(written, read, strict=False)) if a != b), len(read))
            lost = written[place : place + 1]
            raise DataError(f"the tokenizer cannot represent {lost!r}; it would be lost", "remove it from the row")

    def _turn(self, text: str, messages: list[Message], index: int) -> tuple[int, int]:
        """Character span of the assistant turn ``index`` in the text of the whole conversation."""
        before = self.text(messages[:index], generate=True)
        after = self.text(messages[: index + 1])
        if not (after.startswith(before) and text.startswith(after)):
            raise ModelError(
                f"the chat template rewrites earlier turns (seen at messages[{index}]), so supervision cannot be placed",
                "split the conversation into single-turn rows",
            )
        return len(before), len(after)

    def _encode(self, text: str) -> dict[str, Any]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return {"input_ids": list(encoded["input_ids"]), "offset_mapping": list(encoded["offset_mapping"])}


def with_system(messages: list[Message], instruction: str | None) -> list[Message]:
    """The conversation with ``instruction`` as its system turn, in front of a system turn of its own."""
    if instruction is None:
        return messages
    if messages[0]["role"] == "system":
        own = messages[0]["content"]
        return [{"role": "system", "content": f"{instruction}\n\n{own}"}, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def _as_ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else value
