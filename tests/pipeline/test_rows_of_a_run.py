"""The stage ``data`` where rows are split already, come from several paths, or are taken in part."""

import json
from functools import partial

import datasets
import pytest

from shared import write_recipe
from tunesmith.errors import DataError
from tunesmith.pipeline import verbs as api
from tunesmith.rundir import read_json, read_rows
from tunesmith.rundir.records.check import DataReport
from tunesmith.train.documents import Documents


def _write(path, count, name="q", answer="a"):
    path.write_text("".join(json.dumps({"prompt": f"{name}{i}", "completion": f"{answer}{i}"}) + "\n" for i in range(count)))


def _data(folder, changes, model=None):
    recipe = write_recipe(folder, model or folder, {"task": {"metric": "exact_match"}, **changes})
    run = api.open_run(recipe, folder / f"run{len(list(folder.iterdir()))}")
    api.data(run)
    return run


def _questions(run, part):
    return {row.question for row in read_rows(run.data / f"{part}.jsonl")}


def test_a_split_that_is_there_is_kept_or_asked_about(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    _write(rows / "train.jsonl", 60)
    _write(rows / "test.jsonl", 9, "t")
    for verb in (api.data, api.check, partial(api.advise, quick=True)):
        with pytest.raises(DataError, match=r"split already: train \(train.jsonl\), test \(test.jsonl\)") as asked:
            verb(api.open_run(write_recipe(tmp_path, tmp_path, {"data.path": "rows"}), tmp_path / "asked"))
    assert "'split: given'" in asked.value.hint and "'split: drawn'" in asked.value.hint
    run = _data(tmp_path, {"data.path": "rows", "data.split": "given"})
    train, dev = _questions(run, "train"), _questions(run, "dev")
    assert _questions(run, "test") == {f"t{i}" for i in range(9)} and train | dev == {f"q{i}" for i in range(60)}
    assert dev and not train & dev and DataReport.read(run.data_report_file).split == "given"
    _write(rows / "validation.jsonl", 7, "v")
    api.data(run)  # the split of the run before plays no role
    assert _questions(run, "dev") == {f"v{i}" for i in range(7)} and len(_questions(run, "train")) == 60
    (rows / "test.jsonl").unlink()
    api.data(run)
    assert _questions(run, "test") < {f"q{i}" for i in range(60)} and len(_questions(run, "dev")) == 7
    pooled = _data(tmp_path, {"data.path": "rows", "data.split": "drawn"})
    assert len(_questions(pooled, "train") & {f"v{i}" for i in range(7)}) > 0
    (rows / "more.jsonl").write_text((rows / "train.jsonl").read_text())
    with pytest.raises(DataError, match=r"no part \(more.jsonl\)"):
        api.data(run)


def test_leaks_of_a_given_split_are_counted_and_refused(tmp_path, talk):
    (tmp_path / "rows").mkdir()
    _write(tmp_path / "rows" / "train.jsonl", 60)
    _write(tmp_path / "rows" / "test.jsonl", 12)
    run = _data(tmp_path, {"data.path": "rows", "data.split": "given"})
    report = DataReport.read(run.data_report_file)
    assert report.test == 12 and report.leaks > 6 and "test rows stand whole inside a train row" in talk()
    with pytest.raises(DataError, match="stand whole inside") as refused:
        _data(tmp_path, {"data.path": "rows", "data.split": "given", "data.on_leak": "refuse"})
    assert "train files" in refused.value.hint  # move would be refused


def test_splits_of_the_hub_are_kept_or_asked_about(tmp_path, monkeypatch):
    rows = {split: [f"{split} {i}" for i in range(20)] for split in ("train", "validation", "test")}
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *_: list(rows))
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda name, config, split: datasets.Dataset.from_dict({"prompt": rows[split], "completion": rows[split]}),
    )
    with pytest.raises(DataError, match=r"split already: train \(owner/rows:train\), dev \(owner/rows:validation\)"):
        _data(tmp_path, {"data.path": "owner/rows"})
    given = _data(tmp_path, {"data.path": "owner/rows", "data.split": "given"})
    for part, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
        assert _questions(given, part) == set(rows[split])
    one = _data(tmp_path, {"data.path": "owner/rows:train"})
    assert set().union(*(_questions(one, part) for part in ("train", "dev", "test"))) == set(rows["train"])


def test_counts_and_weights_of_several_paths(tmp_path, tiny_dir, talk):
    _write(tmp_path / "a.jsonl", 100)
    _write(tmp_path / "b.jsonl", 80, "other")
    path = ["a.jsonl", {"path": "b.jsonl", "count": 40, "weight": 2.5}]
    run = _data(tmp_path, {"data.path": path, "data.limit": 130}, tiny_dir)
    rows = {part: read_rows(run.data / f"{part}.jsonl") for part in ("train", "dev", "test")}
    report = DataReport.read(run.data_report_file)
    assert report.rows == sum(map(len, rows.values())) == 130 and report.check.reading.rows == 180
    assert report.trained == sum(row.repeats for row in rows["train"]) > len(rows["train"])
    for part, several in rows.items():
        for row in several:
            assert row.place.startswith("b.jsonl" if row.question.startswith("other") else "a.jsonl")
            assert row.repeats in ((2, 3) if part == "train" and row.place.startswith("b") else (1,))
    said = talk()
    assert "b.jsonl: 40 of 80 rows are taken" in said and f"{report.trained} rows are trained on, of {report.train}" in said
    api.render(run)
    documents = Documents.open(run.data / "train.arrow")
    assert documents.rows == report.trained, "a copy is a row of its own, which another step may take"
    lighter = _data(tmp_path, {"data.path": [{**path[1], "weight": 0.5}], "data.limit": 130})
    report = DataReport.read(lighter.data_report_file)
    assert report.rows == 40 and len(read_rows(lighter.data / "train.jsonl")) == report.trained < report.train
    assert not list(lighter.data.glob(".*"))
    assert len(read_json(lighter.split_file)["parts"]["train"]) == report.train


def test_repeated_rows_are_repeated_documents(tmp_path, tiny_dir):
    (tmp_path / "other").mkdir()
    once = api.open_run(write_recipe(tmp_path, tiny_dir), tmp_path / "once")
    heavy = write_recipe(tmp_path / "other", tiny_dir, {"data.path": [{"path": "rows.jsonl", "weight": 2}]})
    twice = api.open_run(heavy, tmp_path / "twice")
    for run in (once, twice):
        api.data(run)
        api.render(run)
    tokens = [read_json(run.rendered_file)["train_tokens"] for run in (once, twice)]
    assert tokens[1] == 2 * tokens[0] and _questions(once, "dev") == _questions(twice, "dev")
