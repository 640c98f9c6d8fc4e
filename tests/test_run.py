"""The Python product: rows in, a verdict out, and nothing of torch until it is needed."""

import subprocess
import sys

import pytest

import tunesmith as ts
from conftest import toy_rows
from tunesmith.errors import RecipeError, RunError

SMALL = {
    "base": "fp32",
    "lora": {"r": 4, "alpha": 8},
    "train": {"tokens_per_step": 256, "max_length": 128, "num_train_epochs": 1, "learning_rate": 0.002},
    "evaluate": {"arms": ["zero_shot", "tuned"], "few_shot": {"k": [1], "draws": 1}, "batch_size": 8},
    "export": {"gguf": ["F16"]},
}


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
    with pytest.raises(RunError, match="the arm few_shot was not scored"):
        run.outputs("few_shot")


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
