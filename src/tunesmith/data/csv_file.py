"""Rows of a table of separated values: the separator, the header, and what is wrong with a row.

The separator is told from the first lines: the one under which all of them have as many cells as the header, the comma before
the others. It is said when it is not what the name of the file says, and can be named. A cell is text, whatever it looks like.
"""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.problems import RowError, Unreadable
from tunesmith.data.strict_json import MAX_LINE
from tunesmith.errors import DataError
from tunesmith.formatting import repeated

DELIMITERS = (",", ";", "\t", "|")
SAMPLE = 100  # lines from which the separator is told


def checked_delimiter(name: str) -> str:
    r"""The separator behind a name: one character, or ``tab`` or ``\t``.

    Raises:
        DataError: it is none.
    """
    character = "\t" if name in ("tab", "\\t") else name
    if len(character) != 1 or character in '"\r\n':
        raise DataError(f"delimiter {name!r:.40}, expected one character", "data.delimiter is one such as ';', '|' or tab")
    return character


def csv_rows(
    lines: Iterator[str], path: Path, usual: str, delimiter: str | None, notes: list[str]
) -> Iterator[tuple[int, Any]]:
    """The line that each row begins in, and the row as an object.

    Args:
        lines: of the file, with their line breaks.
        path: for messages.
        usual: the separator that the name of the file says.
        delimiter: the separator; None to tell it.
        notes: receives the separator where it is another than the usual one.

    Raises:
        DataError: a header that is none, or a quote that is left open.
    """
    head = list(itertools.islice(lines, SAMPLE))
    if delimiter is None:
        delimiter = _told(head, usual)
        if delimiter != usual:
            notes.append(f"{path.name}: read with {delimiter!r} between the cells")
    # The module's own limit (131,072 characters) is for a whole process, and too small for a conversation.
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(itertools.chain(head, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if header is None or "field limit" in str(error):
                message = f"{path}: line {number}: {error}; a quote is probably left open there"
                raise DataError(message, "close it, and double the quotes inside a cell") from error
            hint = "double the quotes inside a quoted cell, and close every one"
            yield number, Unreadable(RowError("$", "bad-csv", f"{error}, in the row that begins here", hint), b"")
        else:
            if header is None:
                header = _header(cells, path, delimiter) if cells else None
                continue
            yield number, _row(header, cells)


def _told(head: list[str], usual: str) -> str:
    """The separator under which the first lines have as many cells as the header; the usual one where none has."""
    widths = {delimiter: _width(head, delimiter) for delimiter in dict.fromkeys((usual, *DELIMITERS))}
    if widths[usual] > 1:
        return usual
    best = max(widths, key=lambda delimiter: widths[delimiter])
    return best if widths[best] > 1 else usual


def _width(head: list[str], delimiter: str) -> int:
    """Cells of every record of the sample, 0 where they differ."""
    widths: set[int] = set()
    records = csv.reader(head, delimiter=delimiter, strict=True)
    try:
        for cells in records:
            if cells and (records.line_num < len(head) or len(head) < SAMPLE):
                widths.add(len(cells))
    except csv.Error:
        if not widths:
            return 0
    return widths.pop() if len(widths) == 1 else 0


def _header(cells: list[str], path: Path, delimiter: str) -> list[str]:
    twice = repeated(cells)
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} stands twice in the first line", "rename one of the two")
    if len(cells) == 1 and any(other in cells[0] for other in DELIMITERS):
        message = f"{path}: the first line is one column, {cells[0]!r:.80}; expected names with {delimiter!r} between"
        other = next(other for other in DELIMITERS if other in cells[0])
        shown = "tab" if other == "\t" else f"'{other}'"
        hint = f"name the separator: --delimiter {shown} (data.delimiter); its cells then need quotes where they hold it"
        raise DataError(message, hint)
    return cells


def _row(header: list[str], cells: list[str]) -> Any:
    if not cells:
        return b""  # an empty line, counted as in the other formats
    raw = ",".join(cells)
    if len(cells) != len(header):
        message = f"{len(cells)} cells, the first line names {len(header)} columns"
        bad = RowError("$", "ragged-row", message, "put quotes around text that holds the separator or a line break")
        return Unreadable(bad, raw.encode("utf-8", "surrogateescape"))
    if ', "' in raw or raw.startswith(' "'):
        for name, cell in zip(header, cells, strict=True):
            if cell.startswith(' "') and cell.endswith('"'):
                message = "the cell begins with a space before its quote, so space and quotes would be text"
                bad = RowError(
                    f"$.{name}", "space-before-quote", message, "remove the spaces between the separator and the quotes"
                )
                return Unreadable(bad, raw.encode("utf-8", "surrogateescape"))
    if not raw.isascii() or "\0" in raw:
        for name, cell in zip(header, cells, strict=True):
            if "\0" in cell:
                bad = RowError(
                    f"$.{name}", "nul-byte", "NUL byte in the cell", "the file was damaged, or is UTF-16; write it again"
                )
                return Unreadable(bad, raw.encode("utf-8", "surrogateescape"))
            if any("\udc80" <= letter <= "\udcff" for letter in cell):
                hint = "write this cell again; an encoding named for the file would garble the cells that are UTF-8"
                bad = RowError(f"$.{name}", "not-utf8", "the cell is not UTF-8, as others of the file are", hint)
                return Unreadable(bad, raw.encode("utf-8", "surrogateescape"))
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}
