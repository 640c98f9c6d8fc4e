"""Files of the dialects that people bring, each held to its line of ``cases/wanted.yaml``."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from hints import faults_of, is_known, read_as_typed

import tunesmith.data
from shared import write_recipe
from tunesmith.data.read import Reader, ReadOptions
from tunesmith.errors import DataError
from tunesmith.pipeline import verbs
from tunesmith.pipeline.check import check
from tunesmith.rundir.records.check import DataReport

CASES = Path(__file__).parent / "cases"
WANTED = yaml.safe_load((CASES / "wanted.yaml").read_text())
KEYS = {"file", "options", "rows", "same", "format", "says", "error", "hint", "finding", "recipe", "leaks"}


def name_of(line):
    return line["file"] + "".join(f"-{key}-{value}" for key, value in line.get("options", {}).items() if key != "columns")


def content(file, options=None):
    reader = Reader(CASES / file, ReadOptions(**options or {}))
    return [(row.messages, row.tools, row.kind) for row in reader], reader


def refusal(file, options):
    """The error of reading a file so; empty where it is read."""
    try:
        list(Reader(CASES / file, options))
    except DataError as error:
        return error.message
    return ""


def faults_of_error(line, error):
    """What an error does not say, and what it offers and nobody could type."""
    text = f"{error.message}\n{error.hint}"
    return [text for word in (line.get("error"), line.get("hint", "")) if word is None or word not in text] + faults_of(text)


def faults(line):
    """What the file gives and the line does not want."""
    try:
        rows, reader = content(line["file"], line.get("options"))
    except DataError as error:
        return faults_of_error(line, error) + [
            f"{options} change nothing: {error.message}"
            for options in read_as_typed(error.hint)
            if "options" not in line and refusal(line["file"], options) == error.message
        ]
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


def faults_of_run(line, folder):
    """The same of the stage ``data`` of a recipe."""
    recipe = write_recipe(
        folder, folder, {"task": {"metric": "exact_match"}, "data.path": str(CASES / line["file"]), **line["recipe"]}
    )
    run = verbs.open_run(recipe, folder / "run")
    try:
        verbs.data(run)
    except DataError as error:
        return faults_of_error(line, error)
    report = DataReport.read(run.data_report_file)
    leaks = report.leaks + report.dev_leaks
    return [] if leaks == line.get("leaks") else [f"{leaks} rows leak"]


@pytest.mark.parametrize("line", WANTED, ids=name_of)
def test_every_file_gives_what_its_line_says(line, tmp_path):
    assert set(line) <= KEYS and len({"rows", "error", "leaks"} & set(line)) == 1
    assert not (faults(line) if "recipe" not in line else faults_of_run(line, tmp_path))


def test_every_file_has_a_line():
    named = {Path(name).parts[0] for line in WANTED for name in (line["file"], line.get("same", line["file"]))}
    assert {file.name for file in CASES.iterdir()} - {"wanted.yaml"} == named


@pytest.mark.parametrize(
    ("hint", "fault"),
    [
        ("or name it: --encodin cp1252 (data.encoding)", "--encodin cp1252"),
        ("--turns mend (data.turns: trim) joins", "--turns mend"),
        ("set data.reasonings: split", "data.reasonings"),
        ("data.turns: mend", "data.turns: mend"),
        ("way back: tunesmith convert DATA rows.jsonl --request IN", "tunesmith convert DATA rows.jsonl --request IN"),
        ("leave one out (--tak)", "--tak"),
        ("--take chosen (data.take) or --column 'prompt=a b' --column completion=c, or data.columns: {prompt: a}", None),
    ],
)
def test_a_hint_that_nobody_could_type_is_found(hint, fault):
    assert [found.removeprefix(": ") for found in faults_of(hint)] == ([] if fault is None else [fault])


def test_every_option_and_key_that_the_room_names_is_known():
    room = Path(tunesmith.data.__file__).parent
    texts = {
        node.value
        for file in room.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    named = {word for text in texts for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+|\bdata\.[a-z_]+\b(?=[:) ])", text)}
    assert {"--column", "--requests", "data.take"} <= named
    assert not {word for word in named if not is_known(word)}
