"""``tunesmith init``: the recipe that it writes loads, and its metric scores every reference."""

import json

import pytest

import tunesmith as ts
from tunesmith.data.read import Reader, read_rows
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.references import check_references
from tunesmith.pipeline.init import init

STORY = "a red car and a blue boat went down the long road to the sea where an old man sold them both for a song"
ANSWERS = {
    "classification": [("yes: a", "no # b")[n % 2] for n in range(40)],
    "macro_f1": [("ham", "Ham", "spam")[0 if n % 10 else 2 - n % 20 // 10] for n in range(60)],
    "json": [json.dumps({"colour": "red", "number": n}) for n in range(40)],
    "numeric": [str(n * 1.5) for n in range(40)],
    "rouge": [f"{STORY}, number {n}" for n in range(40)],
    "exact_match": [f"Row {n}" for n in range(40)],
    "tool_calls": [None if n % 4 else "No function does that." for n in range(40)],
}


def write_rows(path, answers, name="f"):
    """Rows with these answers; None is a call of ``f``."""
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = [{"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}}]
    rows = []
    for number, text in enumerate(answers):
        answer = {"content": "", "tool_calls": [call]} if text is None else {"content": text}
        rows.append({"messages": [{"role": "user", "content": f"ask {number}"}, {"role": "assistant", **answer}]})
        rows[-1] |= {"tools": tools} if None in answers else {}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("metric", ANSWERS)
def test_the_metric_suits_the_answers(metric, tmp_path, monkeypatch, tiny_dir):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    source = write_rows(tmp_path / "my rows.v2.jsonl", ANSWERS[metric])
    path = init(str(source), str(tiny_dir))
    recipe = ts.load_recipe(path)
    assert recipe.task.metric == metric
    assert recipe.data.path == str(source.resolve())
    check_references(read_rows(source), make_metric(recipe.task))
    tokens = ts.check(source, model=str(tiny_dir)).tokens
    if metric == "tool_calls":  # which the tiny model's template does not write
        return
    assert tokens is not None
    assert tokens.lengths.max + 64 <= recipe.train.max_length < tokens.lengths.max + 128


def test_labels_are_the_answers_themselves_one_of_each_spelling(tmp_path, tiny_dir):
    out = tmp_path / "recipe.yaml"
    label = "mail to someone@example.org"  # masked in the report
    init(
        str(write_rows(tmp_path / "rows.jsonl", [("ham", "HAM", "ham", label)[n % 4] for n in range(40)])),
        str(tiny_dir),
        out=out,
    )
    assert ts.load_recipe(out).task.labels == ("ham", label)


def test_a_metric_that_a_row_does_not_fit_is_named_and_not_proposed(tmp_path, tiny_dir):
    out = tmp_path / "recipe.yaml"
    init(str(write_rows(tmp_path / "rows.jsonl", [*ANSWERS["json"], "none"])), str(tiny_dir), out=out)
    assert ts.load_recipe(out).task.metric == "exact_match"
    assert "not json: the answer of line 41" in out.read_text()


def test_a_split_that_is_there_is_proposed_as_given(tmp_path, tiny_dir):
    (tmp_path / "rows").mkdir()
    for part in ("train", "test"):
        write_rows(tmp_path / "rows" / f"{part}.jsonl", [f"{part} {n}" for n in range(10)])
    assert ts.load_recipe(init(str(tmp_path / "rows"), str(tiny_dir), out=tmp_path / "r.yaml")).data.split == "given"


def test_what_cannot_be_proposed_is_refused(tmp_path, tiny_dir):
    source = write_rows(tmp_path / "rows.jsonl", ANSWERS["numeric"])
    out = tmp_path / "recipe.yaml"
    out.write_text("mine")
    with pytest.raises(RecipeError, match="already"):
        init(str(source), str(tiny_dir), out=out)
    assert out.read_text() == "mine"
    write_rows(source, [None, "text"], name="g")
    with pytest.raises(DataError, match="line 1: it calls 'f', which its tools do not declare"):
        init(str(source), str(tiny_dir), out=tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


def test_missing_data_is_said_before_a_missing_model_and_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"rows\.jsonl: no such file") as caught:
        init("rows.jsonl", "no_model.gguf")
    assert f"from {tmp_path}" in caught.value.hint and "recipe" not in caught.value.hint
    write_rows(tmp_path / "rows.jsonl", ["a"])
    with pytest.raises(ModelError, match="no_model"):
        init("rows.jsonl", "no_model.gguf")


def test_the_source_is_read_twice(tmp_path, tiny_dir, monkeypatch):
    readings = []
    batches = Reader.batches
    monkeypatch.setattr(Reader, "batches", lambda reader: readings.append(reader) or batches(reader))
    init(str(write_rows(tmp_path / "rows.jsonl", [*ANSWERS["json"], "none"])), str(tiny_dir), out=tmp_path / "recipe.yaml")
    assert len(readings) == 2
