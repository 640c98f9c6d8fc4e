"""Files of the dialects that people bring, each held to its line of ``cases/wanted.yaml``."""

from pathlib import Path

import pytest
import yaml

from tunesmith.data.read import Reader, ReadOptions
from tunesmith.errors import DataError
from tunesmith.pipeline.check import check

CASES = Path(__file__).parent / "cases"
WANTED = yaml.safe_load((CASES / "wanted.yaml").read_text())
KEYS = {"file", "options", "rows", "same", "format", "says", "error", "hint", "finding", "todo"}


def name_of(line):
    return line["file"] + "".join(f"-{key}-{value}" for key, value in line.get("options", {}).items() if key != "columns")


def content(file, options=None):
    reader = Reader(CASES / file, ReadOptions(**options or {}))
    return [(row.messages, row.tools, row.kind) for row in reader], reader


def faults(line):
    """What the file gives and the line does not want."""
    try:
        rows, reader = content(line["file"], line.get("options"))
    except DataError as error:
        text = f"{error.message}\n{error.hint}"
        return [text for word in (line.get("error"), line.get("hint", "")) if word is None or word not in text]
    if "rows" not in line:
        return [f"{len(rows)} rows"]
    reading = reader.summary()
    notes = "\n".join(reading.notes)
    wrong = [] if len(rows) == line["rows"] else [f"{len(rows)} rows"]
    if "same" in line:
        wrong += [f"{row} is not {twin}" for row, twin in zip(rows, content(line["same"])[0], strict=True) if row != twin]
    wrong += [f"format {reading.format}"] if reading.format != line.get("format", reading.format) else []
    wrong += [f"notes: {notes}"] if line.get("says", "") not in notes else []
    if "finding" in line:
        quality = check(CASES / line["file"], near=False).quality
        codes = {finding.code for finding in quality.findings if finding.severity in ("wrong", "suspect")}
        expected = codes if line["finding"] == "any" else {line["finding"]}
        wrong += [] if expected and expected <= codes else [f"findings: {codes}"]
    return wrong


@pytest.mark.parametrize("line", WANTED, ids=name_of)
def test_every_file_gives_what_its_line_says(line):
    assert set(line) <= KEYS and ("rows" in line) != ("error" in line)
    try:
        wrong = faults(line)
    except TypeError as error:  # an option that is not there yet
        wrong = [str(error)]
    if "todo" in line:
        assert wrong, "it passes: take the todo off its line"
        pytest.xfail(line["todo"])
    assert not wrong
