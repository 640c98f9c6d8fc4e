"""A row as a template writes it, for people to look at: its documents piece by piece, and what was left out of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.chat.render import Conversation, Piece, Renderer
from tunesmith.errors import DataError
from tunesmith.messages import Message

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")


@dataclass(frozen=True, kw_only=True)
class ShownDocument:
    """One document of a row.

    Attributes:
        pieces: its text in order.
        left_out: texts of the row that the template does not write in it, by their JSON paths.
    """

    pieces: tuple[Piece, ...]
    left_out: dict[str, str]

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""
        return sum(len(piece.ids) for piece in self.pieces if piece.supervised)


@dataclass(frozen=True, kw_only=True)
class PreviewedRow:
    """A row as it is rendered.

    Attributes:
        id: of the row.
        place: where it stands, for people.
        documents: what it is trained as; empty where it cannot be rendered.
        notes: what is to be said of it.
        error: what keeps it from being rendered; None where nothing does.
    """

    id: str
    place: str
    documents: tuple[ShownDocument, ...] = ()
    notes: tuple[str, ...] = ()
    error: DataError | None = None


def shown(renderer: Renderer, conversation: Conversation, row_id: str, place: str) -> PreviewedRow:
    """A conversation as the template writes it, or with the error that keeps it from that."""
    parts = conversation.messages, conversation.tools, conversation.kind
    try:
        documents = tuple(
            ShownDocument(pieces=tuple(pieces), left_out=_texts(conversation.messages, paths))
            for pieces, paths in zip(renderer.documents(*parts), renderer.left_out(*parts), strict=True)
        )
        return PreviewedRow(id=row_id, place=place, documents=documents, notes=renderer.render(*parts).notes)
    except DataError as error:
        return PreviewedRow(id=row_id, place=place, error=error)


def _texts(messages: list[Message], paths: Iterable[str]) -> dict[str, str]:
    """The texts at JSON paths such as ``$.messages[1].reasoning_content``."""
    texts: dict[str, str] = {}
    for path in paths:
        value: object = {"messages": messages}
        for key, number in _STEP.findall(path):
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list):
                value = value[int(number)]
        texts[path] = value if isinstance(value, str) else ""
    return texts
