"""Workbooks with one row, with several sheets, with cells under no name."""

import zipfile

import pytest

from tunesmith.data.read import Reader, read_rows
from tunesmith.errors import DataError

PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def workbook(path, *sheets):
    """A workbook of sheets of rows of texts; an empty text is no cell."""
    numbers = range(1, len(sheets) + 1)
    types = "".join(f'<Override PartName="/xl/s{n}.xml" ContentType="{KIND}.worksheet+xml"/>' for n in numbers)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{KIND}.sheet.main+xml"/>{types}</Types>',
        "_rels/.rels": _relations([("officeDocument", "xl/workbook.xml")]),
        "xl/_rels/workbook.xml.rels": _relations([("worksheet", f"s{n}.xml") for n in numbers]),
        "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets>'
        + "".join(f'<sheet name="Sheet{n}" sheetId="{n}" r:id="r{n}"/>' for n in numbers)
        + "</sheets></workbook>",
    }
    for n, rows in zip(numbers, sheets, strict=True):
        lines = "".join(f'<row r="{y}">{_cells(y, row)}</row>' for y, row in enumerate(rows, 1))
        parts[f"xl/s{n}.xml"] = f'<worksheet xmlns="{MAIN}"><sheetData>{lines}</sheetData></worksheet>'
    with zipfile.ZipFile(path, "w") as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return path


def _relations(targets):
    lines = (
        f'<Relationship Id="r{n}" Type="{OFFICE}/{kind}" Target="{target}"/>' for n, (kind, target) in enumerate(targets, 1)
    )
    return f'<Relationships xmlns="{PACKAGE}/relationships">{"".join(lines)}</Relationships>'


def _cells(y, row):
    cells = ((chr(ord("A") + x) + str(y), text) for x, text in enumerate(row) if text)
    return "".join(f'<c r="{place}" t="inlineStr"><is><t>{text}</t></is></c>' for place, text in cells)


HEAD, ROW = ("prompt", "completion"), ("q", "a")


def test_a_sheet_of_one_row_is_a_sheet_with_rows(tmp_path):
    (row,) = read_rows(workbook(tmp_path / "a.xlsx", [HEAD, ROW], [("a title alone",)]))
    assert [message["content"] for message in row.messages] == ["q", "a"]
    with pytest.raises(DataError, match="2 sheets with rows"):
        read_rows(workbook(tmp_path / "b.xlsx", [HEAD, ROW, ROW], [HEAD, ROW]))


def test_cells_under_no_name_are_told(tmp_path):
    reader = Reader(workbook(tmp_path / "a.xlsx", [HEAD, (*ROW, "more")]))
    assert len(list(reader)) == 1
    assert list(reader.summary().ignored_columns) == [""]
