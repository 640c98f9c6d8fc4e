"""Show rows as a model's template writes them: what is supervised, what is context, what are control tokens."""

import itertools
from html import escape
from pathlib import Path

from tunesmith.chat.render import Conversation
from tunesmith.chat.shown import PreviewedRow, ShownDocument, shown
from tunesmith.chat.template_choice import template_text
from tunesmith.data.memory import Rows
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.engines.base import open_base
from tunesmith.pipeline.lines import lines_of

SUPERVISED, CONTROL = "color:#009e73;font-weight:bold", "opacity:.55"


class Preview(list[PreviewedRow]):
    """The first rows of a source; a notebook shows them in colours.

    Attributes:
        lines: how the source is read so far, and what is wrong with the rows shown.
        dated: the day that the template writes into every row; None where it writes none.
    """

    lines: tuple[str, ...] = ()
    dated: str | None = None

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
    previewed = Preview(shown(renderer, Conversation.of(row), row.id, row.place) for row in first)
    previewed.dated = renderer.date
    previewed.lines = lines_of(reader, first, previewed.dated)
    if len(first) == rows:
        previewed.lines += ("rows after these were not looked at, and may be bad: tunesmith check DATA looks at all",)
    return previewed


def _shown(row: PreviewedRow) -> str:
    head = f"<p><strong>{escape(row.id)}</strong>, {escape(row.place)}"
    if row.error is not None:
        return f"{head}: cannot be rendered: {escape(str(row.error))}</p>"
    return "".join(f"{head}: {_document(document)}" for document in row.documents)


def _document(document: ShownDocument) -> str:
    style = {(True, True): f"{SUPERVISED};{CONTROL}", (True, False): SUPERVISED, (False, True): CONTROL, (False, False): ""}
    text = "".join(
        f'<span style="{style[piece.supervised, piece.control]}">{escape(piece.text)}</span>' for piece in document.pieces
    )
    counts = f"{document.tokens} tokens, {document.supervised} supervised"
    return f'{counts}</p><pre style="white-space:pre-wrap">{text}</pre>'
