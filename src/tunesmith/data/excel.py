"""Rows of an Excel workbook: its one sheet with cells, the first row the names of the columns.

A cell is text, as in a table of comma separated values: 1 where Excel shows 1 (it keeps every number with a decimal point), a
date as ISO 8601 writes it. The parser reads the sheet whole; a sheet has a million rows at most.
"""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.formatting import repeated


def excel_rows(path: Path, notes: list[str]) -> Iterator[tuple[int, Any]]:
    """The number of each row in the sheet, and the row as an object.

    Raises:
        DataError: no workbook, no sheet with rows or several, or a header that is none.
        ModuleNotFoundError: ``python-calamine`` is not installed.
    """
    import python_calamine as calamine

    try:
        book = calamine.CalamineWorkbook.from_path(str(path))
        sheets = [book.get_sheet_by_name(name) for name in book.sheet_names]
    except calamine.CalamineError as error:
        raise DataError(f"{path}: not a whole Excel workbook ({error!s:.120})", "save it again, as .xlsx or as CSV") from error
    filled = [sheet for sheet in sheets if sheet.end is not None and sheet.end[0] > (sheet.start or (0, 0))[0]]
    if len(filled) != 1:
        names = ", ".join(sheet.name for sheet in filled) or "none"
        raise DataError(f"{path}: {len(filled)} sheets with rows, expected one: {names}", "save the sheet of the rows as CSV")
    notes.append(f"{path.name}: sheet {filled[0].name!r}, the first row names the columns, every cell is read as text")
    header: list[str] | None = None
    start = filled[0].start or (0, 0)
    for number, values in enumerate(filled[0].iter_rows(), start=start[0] + 1):
        cells = [_text(value) for value in values]
        if header is None:
            header = _header(cells, path) if any(cells) else None
            continue
        yield number, {name: cell for name, cell in zip(header, cells, strict=False) if cell} or b""  # "" is a column, ignored


def _header(cells: list[str], path: Path) -> list[str]:
    twice = repeated(cell for cell in cells if cell)
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} stands twice in the first row", "rename one of the two")
    return cells


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
