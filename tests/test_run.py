"""The Python product: rows in, a verdict out, and nothing of torch until it is needed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

import tunesmith as ts
from shared import toy_rows, without_places
from tunesmith.errors import DataError, ModelError, RecipeError, RunError
from tunesmith.pipeline import verbs

SMALL = {
    "base": "fp32",
    "lora": {"r": 4, "alpha": 8},
    "train": {"tokens_per_step": 256, "max_length": 128, "num_train_epochs": 1, "learning_rate": 0.002},
    "evaluate": {"arms": ["zero_shot", "tuned"], "few_shot": {"k": [1], "draws": 1}, "batch_size": 8},
    "export": {"gguf": ["F16"]},
}

ROWS = [{"prompt": "a", "completion": "b"}]


def test_import_brings_no_torch():
    code = "import sys, tunesmith as ts; ts.Run; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_rows_become_a_trained_run_that_talks(tmp_path, tiny_dir):
    task = {"prompt": "Colour and thing, as JSON.", "max_new_tokens": 12}
    run = ts.Run("toy", model=tiny_dir, data=toy_rows(), metric="json", out=tmp_path / "run", task=task, **SMALL)
    assert run.train() is run and run.training.steps > 0
    assert run.evaluate("tuned").outputs("tuned")[0].prompt
    assert isinstance(run.chat("a red car"), str)
    assert run.status()["train"].state == "done" and "<table" in run._repr_html_() and "stages done" in repr(run)
    assert run.set(learning_rate=0.001).status()["train"].why == ("train.learning_rate 0.002 -> 0.001",)
    assert ts.Run.open(run.path).recipe == run.recipe
    with pytest.raises(RunError, match="has no verdict yet"):
        run.verify()
    with pytest.raises(RunError, match="the arm zero_shot was not scored"):
        run.outputs("zero_shot")


def test_what_is_wrong_with_a_recipe_is_ours_to_say(tmp_path, tiny_dir):
    with pytest.raises(RecipeError, match=r"Run: task\.metric"):
        ts.Run("toy", model=tiny_dir, data="rows.jsonl", metric="exact_matc", out=tmp_path / "run")
    with pytest.raises(RecipeError, match="unknown key trian") as caught:
        ts.Run("toy", model=tiny_dir, data="rows.jsonl", out=tmp_path / "run", trian={"seed": 1})
    assert "did you mean train?" in caught.value.hint
    run = ts.Run("toy", model=tiny_dir, data="rows.jsonl", out=tmp_path / "run")
    with pytest.raises(RecipeError, match="learning_rat"):
        run.set(learning_rat=1.0)
    with pytest.raises(RecipeError, match=r"train\.learning_rate"):
        run.set(learning_rate=-1.0)


@pytest.mark.parametrize("kind", ["list", "Dataset"])
def test_rows_in_memory_are_checked_and_advised_on_as_their_file(kind, tmp_path, tiny_dir):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    memory = toy_rows() if kind == "list" else datasets.Dataset.from_list(toy_rows())
    run, other = (
        ts.Run("toy", model=tiny_dir, data=data, out=tmp_path / name, **SMALL)
        for name, data in (("memory", memory), ("file", file))
    )
    for report, expected in [
        (run.check(), other.check()),
        (run.check(), ts.check(memory, model=tiny_dir, max_length=128)),
    ]:
        assert report.tokens is not None and report.tokens.rows == 64 and report.tokens.max_length == 128
        assert without_places(report) == without_places(expected)
    assert run.advise(quick=True) == other.advise(quick=True)
    verbs.data(run.directory)
    again = ts.Run("toy", model=tiny_dir, data=memory, out=run.path, **SMALL)
    assert again.status()["data"].state == "done" and Path(run.recipe.data.path).parent == run.path


def test_rows_that_no_file_can_hold_leave_no_run_behind(tmp_path, tiny_dir):
    for rows, message in [([{"text": math.nan}], r"row 1, \$\.text: nan is not JSON"), ([], "no rows"), (3, "found int")]:
        with pytest.raises(DataError, match=message):
            ts.Run("toy", model=tiny_dir, data=rows, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda run: run.set(learnin_rate=1), RecipeError, "unknown key learnin_rate\nhint: did you mean learning_rate"),
        (lambda run: run.training, RunError, r"nothing was trained\nhint: run\.train"),
        (lambda run: run.outputs("tund"), RunError, "no arm tund in evaluate.arms\nhint: arms: instruction, few_shot"),
        (lambda run: ts.Run("a", model=None, data=ROWS), RecipeError, "model: expected a hub id or a path, found None"),
        (lambda run: ts.check(""), DataError, "the path of the rows is empty"),
        (lambda run: ts.render(ROWS, "org/model"), ModelError, "expected LoadedModel, found str\nhint: open one"),
        (lambda run: next(ts.train_steps(5, [])), ModelError, r"found int\nhint: open_base\(model\)\.add_lora"),
        (lambda run: ts.open_base(5), ModelError, "expected a model or a recipe, found int"),
    ],
)
def test_a_slip_is_answered_with_what_to_type(call, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ts.Run("support", model="org/model", data=ROWS)
    with pytest.raises(error, match=says):
        call(run)


def test_names_are_offered_before_they_are_imported():
    assert set(ts.__all__) <= set(dir(ts))
