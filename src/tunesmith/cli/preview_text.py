"""Rows as a model's template writes them, on the terminal: in colours, or between marks where there are none."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tunesmith.chat.shown import PreviewedRow, ShownDocument
from tunesmith.tracking import visible

SUPERVISED, CONTEXT, CONTROL = "bold green", "default", "reverse"


def print_preview(rows: Sequence[PreviewedRow], dated: str | None, with_ids: bool) -> None:
    """All rows, each under its id and place.

    Args:
        rows, dated: what ``preview`` returns.
        with_ids: whether token ids stand behind each piece.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text.assemble(("supervised", SUPERVISED), " ", ("context", CONTEXT), " ", ("control token", CONTROL)))
    if not console.is_terminal:
        console.print("without colours: «supervised», ‹control token›")
    for row in rows:
        console.rule(f"{row.id}, {row.place}")
        if row.error is not None:
            console.print(Text(f"cannot be rendered: {row.error}", "red"))
        for number, document in enumerate(row.documents, start=1):
            if len(row.documents) > 1:
                console.print(f"document {number} of {len(row.documents)}:", style="dim")
            _print_document(console, document, with_ids)
        for note in row.notes:
            console.print(Text(f"note: {note}", "dim"))
    if dated is not None:
        console.print(f"note: the chat template writes the date, here {dated}; a run keeps the one of its first rendering")


def _print_document(console: Console, document: ShownDocument, with_ids: bool) -> None:
    for piece in document.pieces:
        style = SUPERVISED if piece.supervised else CONTEXT
        text = visible(piece.text)
        if not console.is_terminal:
            text = f"‹{text}›" if piece.control else text
            text = f"«{text}»" if piece.supervised else text
        console.print(Text(text, f"{style} {CONTROL}" if piece.control else style), end="")
        if with_ids:
            console.print(Text(f" {piece.ids} ", "dim cyan"), end="")
    console.print(f"\n{document.tokens} tokens, {document.supervised} supervised", style="dim")
    for path, text in document.left_out.items():
        console.print(Text(f"left out by the template: {path}: {visible(text)}", "dim"))
