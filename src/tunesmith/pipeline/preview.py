"""Show rows as a model's template writes them: what is supervised, what is context, what are control tokens."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tunesmith.chat.render import Conversation, Piece
from tunesmith.chat.template_choice import template_text
from tunesmith.data.memory import Rows
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.engines.base import open_base
from tunesmith.errors import DataError
from tunesmith.pipeline.lines import lines_of

SUPERVISED, CONTROL = "color:#009e73;font-weight:bold", "opacity:.55"


@dataclass(frozen=True, kw_only=True)
class PreviewedRow:
    """A row as it is rendered.

    Attributes:
        id: of the row.
        place: where it stands, for people.
        pieces: its text in order; empty where it cannot be rendered.
        error: what keeps it from that; None where nothing does.
    """

    id: str
    place: str
    pieces: tuple[Piece, ...] = ()
    error: DataError | None = None

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""
        return sum(len(piece.ids) for piece in self.pieces if piece.supervised)


class Preview(list[PreviewedRow]):
    """The first rows of a source; a notebook shows them in colours.

    Attributes:
        lines: how the source is read so far, and what is wrong with the rows shown.
    """

    lines: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        legend = f'<span style="{SUPERVISED}">supervised</span> context <span style="{CONTROL}">control token</span>'
        return f"<p>{legend}</p>" + "".join(_shown(row) for row in self)


def preview(
    source: Rows, model: str | Path, options: ReadOptions | None = None, *, template: Path | None = None, rows: int = 3
) -> Preview:
    """The first rows as a model's template writes them.

    Args:
        source: file, directory or hub id, or rows in memory as in ``check``.
        model: hub id, directory or ``.gguf`` file.
        options: how to read.
        template: Jinja file in place of the model's chat template, or the name of one of ours.
        rows: how many.

    Raises:
        DataError: nothing to read there, or a bad row.
        ModelError: no tokenizer there, or a template that cannot be used.
    """
    reader = Reader(source, options or AS_FOUND)
    renderer = open_base(model, None if template is None else template_text(template)).renderer
    first = list(itertools.islice(reader, rows))

    def previewed() -> Iterator[PreviewedRow]:
        for row in first:
            try:
                conversation = Conversation.of(row)
                pieces = renderer.pieces(conversation.messages, conversation.tools, conversation.kind)
                yield PreviewedRow(id=row.id, place=row.place, pieces=tuple(pieces))
            except DataError as error:
                yield PreviewedRow(id=row.id, place=row.place, error=error)

    shown = Preview(previewed())
    shown.lines = lines_of(reader, first)
    return shown


def _shown(row: PreviewedRow) -> str:
    head = f"<p><strong>{escape(row.id)}</strong>, {escape(row.place)}"
    if row.error is not None:
        return f"{head}: cannot be rendered: {escape(str(row.error))}</p>"
    style = {(True, True): f"{SUPERVISED};{CONTROL}", (True, False): SUPERVISED, (False, True): CONTROL, (False, False): ""}
    text = "".join(
        f'<span style="{style[piece.supervised, piece.control]}">{escape(piece.text)}</span>' for piece in row.pieces
    )
    return f'{head}: {row.tokens} tokens, {row.supervised} supervised</p><pre style="white-space:pre-wrap">{text}</pre>'
