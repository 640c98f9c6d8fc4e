"""Show rows as a model's template writes them: what is supervised, what is context, what are control tokens."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from tunesmith.chat.render import Conversation, Piece
from tunesmith.chat.template_choice import template_text
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.engines.base import open_base
from tunesmith.errors import DataError


def preview(
    source: str | Path, model: str, options: "ReadOptions | None" = None, *, template: Path | None = None, rows: int = 3
) -> "Iterator[tuple[str, str, list[Piece] | DataError]]":
    """The first rows as a model's template writes them.

    Returns:
        For each row its id, its place, and its pieces in order or the error that keeps it from being rendered.
    """
    renderer = open_base(model, None if template is None else template_text(template)).renderer
    for row in itertools.islice(Reader(source, options or AS_FOUND), rows):
        try:
            conversation = Conversation.of(row)
            yield row.id, row.place, renderer.pieces(conversation.messages, conversation.tools, conversation.kind)
        except DataError as error:
            yield row.id, row.place, error
