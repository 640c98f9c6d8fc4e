"""The page of a preview: rows as they are trained, in colours, one after another.

A person opens it with one question: is what will be learned what the assistant should say? So nothing but the text is
large. What is supervised has a coloured ground, which neither dark nor light nor a printer takes away, control tokens have a
frame, and what the template leaves out of a document stands under it with its path.
"""

from collections.abc import Sequence
from pathlib import Path

from tunesmith.chat.shown import PreviewedRow
from tunesmith.report.template import render
from tunesmith.rundir import write_text


def write_preview_page(rows: Sequence[PreviewedRow], source: str, model: str, dated: str | None, path: Path) -> None:
    """Write the page: one file, no network, no script.

    Args:
        rows: what ``preview`` returns.
        source, model: as they were named.
        dated: the day that the template writes; None where it writes none.
        path: file to write.
    """
    write_text(path, render("preview.html.j2", rows=rows, source=source, name=Path(source).name, model=model, dated=dated))
