"""Rows in memory are read as the file that they would be; what is no rows is refused with the way out."""

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunesmith as ts
from shared import without_places
from tunesmith.data.memory import rows_in_memory
from tunesmith.data.read import Reader, ReadOptions, read_rows
from tunesmith.errors import DataError

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": null}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def _chat(n):
    calls = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ]
    question = {"role": "user", "content": f"ask é {n % 30} of a great many things 🙂"}
    turns = [question, *(calls if n % 3 == 0 else []), {"role": "assistant", "content": f"yes {n}"}]
    return {"messages": turns, "tools": [TOOL], "source": n}


CHATS = [_chat(n) for n in range(60)]
FORMATS = {
    "messages": [*CHATS, {"messages": [{"role": "user", "content": "nobody answers"}]}],
    "alpaca": [{"instruction": f"do {n}", "input": "", "output": ["a", "b"][n % 2], "history": None} for n in range(40)],
    "prompt_completion": [{"prompt": f"{n} \0 \u2028?", "completion": f"{n}" if n else "", "note": None} for n in range(2100)],
}
QUARANTINE = ReadOptions(on_bad_row="quarantine")
TABLES = {
    "pyarrow": lambda table: table,
    "record batches": lambda table: table.to_reader(),
    "pandas": lambda table: table.to_pandas(),
    "Dataset": lambda table: datasets.Dataset(table),
    "Dataset in another order": lambda table: datasets.Dataset(table.take([*range(1, len(table)), 0])).select(
        [len(table) - 1, *range(len(table) - 1)]
    ),
    "IterableDataset": lambda table: datasets.Dataset(table).to_iterable_dataset(),
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_list_is_read_as_the_file_of_its_lines(format, tmp_path):
    rows = FORMATS[format]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = without_places(ts.check(file, QUARANTINE))
    assert expected["reading"]["bad_rows"] == int(format != "alpaca")
    for source in (rows, tuple(rows), (row for row in rows)):
        assert without_places(ts.check(source, QUARANTINE)) == expected
    reader = Reader(row for row in rows)
    reader.options = QUARANTINE
    assert [row.id for row in reader] == [row.id for row in reader]  # a generator is read again like anything else


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_read_as_its_parquet_file(kind, tmp_path):
    rows = [{**row, "when": datetime.date(2026, 1, 2), "score": float("nan")} for row in FORMATS["prompt_completion"]]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "rows.parquet")
    report = ts.check(TABLES[kind](table), QUARANTINE)
    assert without_places(report) == without_places(ts.check(tmp_path / "rows.parquet", QUARANTINE))
    assert report.reading.ignored_columns.keys() == {"note", "when", "score"}
    memory = rows_in_memory(TABLES[kind](table))
    memory.refuse_bad()
    memory.write(tmp_path / f"rows{memory.suffix}")
    assert without_places(ts.check(tmp_path / "rows.arrow", QUARANTINE)) == without_places(report)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.fixed_dictionaries({"prompt": st.just("q"), "completion": json_values, "extra": json_values}), max_size=4))
def test_a_list_is_refused_where_its_file_is(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("any") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def outcome(source):
        reader = Reader(source, QUARANTINE)
        try:
            return [(row.id, row.messages) for row in reader], reader.problems.by_code
        except DataError:
            return None, reader.problems.by_code

    assert outcome(rows) == outcome(file)


class Thing:
    pass


VALUES = [
    (float("nan"), "$.extra", "not-finite"),
    ([{"a": np.float32("inf")}], "$.extra[0].a", "not-finite"),
    (datetime.datetime(2026, 1, 2), "$.extra", "not-json"),
    (np.datetime64("2026-01-02", "ns"), "$.extra", "not-json"),
    (b"bytes", "$.extra", "not-json"),
    ({1: "a key"}, "$.extra", "not-json"),
    ((1, {2}), "$.extra[1]", "not-json"),
    (Thing(), "$.extra", "not-json"),
    ("half \ud83d", "$.extra", "lone-surrogate"),
    (10**5000, "$", "number-too-long"),
]


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_a_value_that_json_has_not_is_a_bad_row_with_its_place(number, tmp_path):
    value, path, code = VALUES[number]
    rows = [{"text": "a"}, {"text": "b", "extra": value}]
    reader = Reader(rows, QUARANTINE, tmp_path / "bad.jsonl")
    assert [row.place for row in reader] == ["row 1"]
    (problem,) = reader.problems.first
    assert (problem.place, problem.path, problem.code) == ("row 2", path, code) and problem.hint
    assert json.loads((tmp_path / "bad.jsonl").read_text())["raw"].startswith(("{'text': 'b'", '{"text": "b"', "<dict>"))
    with pytest.raises(DataError, match=rf"list of 2 rows: 1 bad rows.*\nrow 2, {re.escape(path)}: .*\[{code}\]"):
        ts.check(rows)


def test_scalars_and_arrays_of_numpy_are_their_values():
    plain = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]}
    turn = {"role": "assistant", "content": np.str_("b"), "weight": np.int64(1)}
    (row,) = read_rows([{"messages": np.array([{"role": "user", "content": "a"}, turn]), "n": np.float32(0.5)}])
    assert (row.id, row.messages) == (read_rows([plain])[0].id, plain["messages"])


MAKE = datasets.Dataset.from_list
ACCIDENTS = {
    "none": (None, "found NoneType", "a path is a str"),
    "number": (3, "found int", "a path is a str"),
    "bytes": (b"rows.jsonl", "found bytes", "a path is a str"),
    "one row": (CHATS[0], "found one dict of 'messages', 'tools', 'source'", r"\[row\]"),
    "columns": ({"prompt": ["a"], "completion": ["b"]}, "found one dict of", "Dataset.from_dict"),
    "splits": (datasets.DatasetDict({"test": MAKE([{"text": "a"}])}), "one DatasetDict of 'test'", r"data\['test'\]"),
    "transform": (MAKE([{"text": "a"}]).with_transform(lambda rows: rows), "it has a transform", r"\.map\("),
    "strings": (["a", "b"], "list of 2 rows: 2 bad rows.*\nrow 1, .*dictionary, found str", None),
    "paths": ([Path("a.jsonl")], "dictionary, found PosixPath", None),
    "empty list": ([], "list of 0 rows: there are no rows", "prompt"),
    "empty generator": (iter(()), "no rows", "prompt"),
    "empty table": (pd.DataFrame({"prompt": [], "completion": []}), "DataFrame of 0 rows: there are no rows", "prompt"),
    "other columns": (pd.DataFrame({"q": ["a"], "a": ["b"]}), "no known column, found q, a", "prompt=q --column completion=a"),
    "mixed types": (pd.DataFrame({"prompt": ["a", 3]}), "DataFrame: no table of Arrow .*column prompt", "to_dict"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_what_is_no_rows_is_refused_with_the_way_out(accident):
    rows, message, hint = ACCIDENTS[accident]
    with pytest.raises(DataError, match=message) as caught:
        ts.check(rows)
    assert re.search(hint or "", caught.value.hint)


def test_pieces_of_other_types_cannot_become_a_file(tmp_path):
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a", "n": 1}] * 1024 + [{"text": "a", "n": "1"}]))
    memory = rows_in_memory(stream)
    with pytest.raises(DataError, match="IterableDataset: no table of Arrow") as caught:
        memory.write(tmp_path / "rows.arrow")
    assert "one type" in caught.value.hint and list(tmp_path.iterdir()) == []


def test_rows_in_memory_bring_no_other_package():
    code = "import sys, tunesmith as ts; ts.check([{'text': 'a'}]); print({'torch', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
