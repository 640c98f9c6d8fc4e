"""Files, folders and lists that are a split say so, and several paths are one source."""

import json

import pyarrow as pa
import pytest

from tunesmith.data.parts import part_of
from tunesmith.data.read import Reader
from tunesmith.data.source import find, find_all
from tunesmith.errors import DataError


def _rows(*names):
    return "".join(json.dumps({"prompt": f"{name}?", "completion": "a"}) + "\n" for name in names)


def _read(source):
    reader = Reader(source)
    batches = [(reader.part, reader.entry, [row.place for row in rows]) for rows in reader.batches()]
    return batches, reader.summary().notes


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("SFT_Train.jsonl", "train"),
        ("my.test.jsonl.gz", "test"),
        ("validation", "dev"),
        ("val_2.jsonl", "dev"),
        ("trainers.jsonl", None),
        ("train_test.jsonl", None),
        ("data", None),
    ],
)
def test_names_are_whole_words(name, part):
    assert part_of(name) == part


def _files(folder):
    (folder / "train-1.jsonl").write_text(_rows("a"))
    (folder / "test-1.jsonl").write_text(_rows("b"))


def _hub(folder):
    (folder / "README.md").write_text("x")
    (folder / "data").mkdir()
    _files(folder / "data")


def _saved(folder):
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for part, name in (("train", "a"), ("test", "b")):
        (folder / part).mkdir()
        (folder / part / "state.json").write_text("{}")
        table = pa.table({"prompt": [name], "completion": ["a"]})
        with pa.ipc.new_stream(folder / part / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)


def _lists(folder):
    lists = {"version": ["1"], "train": [{"prompt": "a", "completion": "["}], "test": [{"prompt": "b", "completion": "}"}]}
    (folder / "both.json").write_text(json.dumps(lists, indent=1))


@pytest.mark.parametrize(
    ("write", "places"),
    [
        (_files, {"train": "train-1.jsonl line 1", "test": "test-1.jsonl line 1"}),
        (_hub, {"train": "data/train-1.jsonl line 1", "test": "data/test-1.jsonl line 1"}),
        (_saved, {"train": "train/data-00000-of-00001.arrow row 1", "test": "test/data-00000-of-00001.arrow row 1"}),
    ],
)
def test_a_directory_of_parts(tmp_path, write, places):
    write(tmp_path)
    batches, notes = _read(tmp_path)
    assert {part: rows for part, _, rows in batches} == {part: [place] for part, place in places.items()}
    assert any("are split already, and read together here: train (" in note for note in notes)


def test_lists_of_one_object_are_parts_and_other_files_are_not(tmp_path):
    _lists(tmp_path)
    for source, name in ((tmp_path / "both.json", ""), (tmp_path, "both.json ")):
        batches, notes = _read(source)
        assert [(part, rows) for part, _, rows in batches] == [
            ("train", [f"{name}train row 1"]),
            ("test", [f"{name}test row 1"]),
        ]
        assert notes[0].endswith("the lists version") and f"train ({name}train), test ({name}test)" in notes[1]
    (tmp_path / "both.json").write_text('{"a": [{"text": "1"}], "b": [{"text": "2"}]}')
    with pytest.raises(DataError, match="more than one list"):
        _read(tmp_path)
    (tmp_path / "both.json").write_text(_rows("a"))
    (tmp_path / "trial.jsonl").write_text(_rows("b"))
    assert _read(tmp_path)[1] == (_read(tmp_path / "trial.jsonl")[1])  # no word of parts


def test_facts_beside_rows_are_no_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text(_rows("a"))
    (tmp_path / "manifest.json").write_text('{"columns": ["prompt"], "kept": 1}')
    (tmp_path / "more.json").write_text('[{"prompt": "b", "completion": "a"}]')
    batches, notes = _read(tmp_path)
    assert [rows for *_, rows in batches] == [["more.json row 1"], ["rows.jsonl line 1"]]
    assert notes[0].endswith("manifest.json")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"bad rows|mixed formats"):  # where nothing else says what rows are
        _read(tmp_path)


def test_several_paths_are_one_source_whose_places_name_the_file(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(_rows(folder))
    (tmp_path / "z.jsonl").write_text(_rows("z", "x"))
    paths = [str(tmp_path / name) for name in ("x", "z.jsonl")]
    batches, _ = _read(find_all(paths))
    assert batches == [(None, 0, ["x rows.jsonl line 1"]), (None, 1, ["z.jsonl line 1", "z.jsonl line 2"])]
    same_name = [str(tmp_path / name / "rows.jsonl") for name in ("x", "y")]
    assert [rows for *_, rows in _read(find_all(same_name))[0]] == [[f"{path} line 1"] for path in same_name]
    reader = Reader(find_all(paths))
    assert [row.id for row in reader][2].endswith("-2")  # a row of two files is a repetition
    assert reader.total_bytes == sum(file.size() for path in paths for file in find(path).files)
    with pytest.raises(DataError, match="named twice"):
        find_all(paths + paths[:1])
    (tmp_path / "other.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    reader = Reader(find_all([paths[1], str(tmp_path / "other.jsonl")]))  # each path has its own format
    assert len(list(reader)) == 3 and len(reader.summary().kinds) == 2
    (tmp_path / "x" / "other.jsonl").write_text((tmp_path / "other.jsonl").read_text())
    with pytest.raises(DataError, match="mixed formats"):
        list(Reader(find_all(paths)))
