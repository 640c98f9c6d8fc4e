"""Plain conversations: what a template writes around their texts, kept as token ids.

Where turns are only texts, a template's own part depends on their roles alone (``chat/layout.py``), and so do its token
ids. They are found once for a sequence of roles, by rendering single letters; a row then costs one run of the template,
one comparison, and the encoding of its texts. A text that holds a bracket could become a control token together with
what stands beside it, and goes the long way round, as does everything here that is not plain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.messages import Message

Encodable = tuple[str, str]  # a text, and where it begins (chat/vocabulary.py)
BRACKETS = ("<", ">", "[", "]")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a message's text goes.

    Attributes:
        message: its number.
        before, after: plain text of the template that is encoded together with it.
        begins: how that stretch begins.
        supervised: whether it is trained on.
    """

    message: int
    before: str
    after: str
    begins: str
    supervised: int


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """A layout in token ids.

    Attributes:
        gaps: what the template writes before each text and after the last, in letters.
        slots: the texts, in the order of the template.
        ids: token ids before each slot and after the last; more than ``gaps`` where a block is put before a turn.
        supervised: 1 for each of ``ids`` that is trained on, else 0.
        notes: what is to be said of every row in this frame, for people.
    """

    gaps: list[str]
    slots: list[Slot]
    ids: list[list[int]]
    supervised: list[list[int]]
    notes: tuple[str, ...] = ()

    def fill(self, messages: list[Message], text: str) -> "FilledLayout | None":
        """The conversation in this frame, or None if that is not what the template wrote (``text``)."""
        contents = [messages[slot.message]["content"] for slot in self.slots]
        if self._text_of(contents) != text:
            contents = [content.strip() for content in contents]
            if self._text_of(contents) != text:
                return None
        return FilledLayout(self, contents, self.notes)

    def _text_of(self, contents: list[str]) -> str:
        parts = [""] * (2 * len(contents) + 1)
        parts[::2], parts[1::2] = self.gaps, contents
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class FilledLayout:
    """A conversation in its frame; ``contents`` in the order of the slots, as the template wrote them."""

    frame: TokenLayout
    contents: list[str]
    notes: tuple[str, ...] = ()

    def texts(self) -> list[Encodable]:
        """What is to be encoded, in order."""
        slots = self.frame.slots
        return [(f"{s.before}{content}{s.after}", s.begins) for s, content in zip(slots, self.contents, strict=True)]

    def assemble(self, encoded: Iterator[list[int]]) -> tuple[list[int], list[int]]:
        """Token ids and supervision, with the ids of ``texts`` from an iterator of many conversations."""
        frame = self.frame
        ids, supervised = [*frame.ids[0]], [*frame.supervised[0]]
        for slot, after, flags in zip(frame.slots, frame.ids[1:], frame.supervised[1:], strict=True):
            tokens = next(encoded)
            ids += tokens
            ids += after
            supervised += [slot.supervised] * len(tokens)
            supervised += flags
        return ids, supervised
