"""What is done, what is not, and why: accidents of files, of recipes and of second processes, replayed on the tiny run."""

import json
import shutil
import subprocess
import sys

import pytest

from shared import write_recipe
from tunesmith.errors import RunError
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.table import table_of
from tunesmith.recipe import dump_recipe
from tunesmith.rundir import RunDir, sha256_file
from tunesmith.rundir.records.stages import Stages

HOLD = """
import sys
from pathlib import Path
from tunesmith.rundir import RunDir
with RunDir(Path(sys.argv[1])).writing():
    print("in", flush=True)
    sys.stdin.read()
"""
STATUS = """
import sys
from tunesmith import cli
sys.argv = ["tunesmith", "status", sys.argv[1]]
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code
print("torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the whole tiny run."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def _edit(run, section, **keys):
    recipe = run.recipe()
    changed = recipe.__dict__[section].model_copy(update=keys)
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={section: changed})))


def _state(run, stage):
    return api.status(run)[stage].state


def _everything(run):
    return {str(p.relative_to(run.path)): sha256_file(p) for p in sorted(run.path.rglob("*")) if p.is_file()}


def test_everything_is_done_after_a_run_and_looking_writes_nothing(run):
    before = _everything(run)
    assert all(state.state == "done" for state in api.status(run).stages)
    RunDir.open(run.path).recipe()
    assert _everything(run) == before


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("data/test.jsonl", "data"),
        ("data/rendered.json", "render"),
        ("evaluation/selection.json", "select"),
        ("evaluation/tuned/outputs.jsonl", "evaluate tuned"),
        ("adapter/adapter_model.safetensors", "train"),
        ("export/toy-Q4_K_M.gguf", "export"),
        ("export/merged/model.safetensors", "export"),
        ("export/parity.json", "parity"),
        ("report.html", "report"),
    ],
)
def test_a_file_that_is_gone_or_altered_is_named_by_the_stage_that_makes_it(run, file, stage):
    content = (run.path / file).read_bytes()
    (run.path / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    state = api.status(run)[stage]
    assert state.state == "broken" and f"{file} is not what was written" in state.why
    (run.path / file).unlink()
    state = api.status(run)[stage]
    assert state.state == "broken" and f"{file} is gone" in state.why


def test_an_altered_adapter_is_never_scored_under_the_old_verdict(run):
    file = run.adapter / "adapter_model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-4] + b"\0\0\0\0")
    for verb in (api.verdict, api.export, api.parity, api.chat):
        with pytest.raises(RunError, match=r"train is damaged: adapter/adapter_model\.safetensors is not what was written"):
            verb(run)
    api.train(run)
    assert file.read_bytes() == good and _state(run, "verdict") == "done"


def test_a_deleted_output_is_made_again_by_the_verb_that_makes_it(run):
    (run.evaluation / "selection.json").unlink()
    shutil.rmtree(run.evaluation / "tuned")
    api.evaluate(run, ["tuned"])
    assert (run.evaluation / "tuned" / "outputs.jsonl").exists()
    with pytest.raises(RunError, match=r"select is damaged: evaluation/selection\.json is gone"):
        api.evaluate(run, ["few_shot"])
    api.make(run, ["select"])
    assert _state(run, "select") == "done"


def test_a_changed_key_is_named_and_single_verbs_refuse(run):
    _edit(run, "train", learning_rate=0.003)
    for verb in (api.export, api.verdict, api.chat, lambda r: api.evaluate(r, ["tuned"])):
        with pytest.raises(RunError, match=r"train is stale: train\.learning_rate 0\.002 -> 0\.003") as caught:
            verb(run)
        assert f"tunesmith train {run.path}" in caught.value.hint
    assert _state(run, "evaluate few_shot") == "done"
    assert api.status(run)["export"].state == "waiting"


@pytest.mark.parametrize(
    ("section", "keys", "stale", "fresh"),
    [
        ("data", {"test_fraction": 0.3}, "data", None),
        ("train", {"max_length": 100}, "render", "data"),
        ("task", {"short_prompt": "Answer."}, "render", "data"),
        ("task", {"prompt": "Other."}, "select", "render"),
        ("task", {"min_gain": 0.2}, "verdict", "evaluate tuned"),
        ("lora", {"alpha": 4}, "train", "evaluate few_shot"),
        ("train", {"keep_checkpoints": 2}, None, "train"),
        ("train", {"ranks": 2}, None, "train"),
        ("evaluate", {"batch_size": 3}, None, "evaluate few_shot"),
        ("evaluate", {"few_shot": None}, "select", "render"),
        ("export", {"num_ctx": 512}, "export", "train"),
    ],
)
def test_a_key_makes_the_stages_stale_that_read_it_and_no_other(run, section, keys, stale, fresh):
    if keys == {"few_shot": None}:
        keys = {"few_shot": run.recipe().evaluate.few_shot.model_copy(update={"k": (1,)})}
    _edit(run, section, **keys)
    status = api.status(run)
    if stale is not None:
        assert status[stale].state == "stale" and all(section in why for why in status[stale].why)
    if fresh is not None:
        assert status[fresh].state == "done"
    if stale is None:
        assert all(state.state == "done" for state in status.stages if state.stage != "report")


def test_more_positions_make_another_model(run):
    run.recipe_file.write_text(dump_recipe(run.recipe().model_copy(update={"max_position_embeddings": 4096})))
    status = api.status(run)
    assert (status["data"].state, status["render"].state) == ("done", "stale")


def test_another_recipe_and_back_ends_with_the_first_ones_bytes(run):
    first = {name: sha256_file(run.path / name) for name in table_of(run.recipe())["train"].outputs}
    _edit(run, "train", num_train_epochs=2)
    api.train(run)
    assert sha256_file(run.metrics_file) != first["metrics.jsonl"]
    _edit(run, "train", num_train_epochs=1)
    api.train(run)
    again = {name: sha256_file(run.path / name) for name in first}
    apart = {"training.json"}  # which holds seconds
    assert {k: v for k, v in again.items() if k not in apart} == {k: v for k, v in first.items() if k not in apart}


def test_two_recipes_do_not_share_a_directory(tmp_path, tiny_dir):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write_recipe(tmp_path / "a", tiny_dir)
    second = write_recipe(tmp_path / "b", tiny_dir, {"lora.alpha": 3})
    run = api.open_run(first, tmp_path / "run")
    with pytest.raises(RunError, match=rf"is the run of {first}.*{second} differs") as caught:
        api.open_run(second, tmp_path / "run")
    assert "--out" in caught.value.hint and "--replace" in caught.value.hint
    assert api.open_run(first, tmp_path / "run").recipe().lora.alpha == 8
    assert api.open_run(second, tmp_path / "run", replace=True).recipe().lora.alpha == 3
    assert run.manifest().recipe_source == str(second)


def test_a_recipes_file_name_may_have_spaces_and_accents(tmp_path, tiny_dir):
    path = write_recipe(tmp_path, tiny_dir).rename(tmp_path / "my recipe é.yaml")
    run = api.open_run(path, tmp_path / "run")
    assert run.recipe().name == "my-recipe-e"


def test_one_writes_and_a_second_one_is_told_who(run):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "in\n"
    with pytest.raises(RunError, match=rf"is being written by process {child.pid} since 20"):
        api.report(run)
    assert f"process {child.pid}" in api.status(run).writer
    child.kill()
    child.communicate()
    assert api.status(run).writer is None
    api.report(run)


def test_torn_bookkeeping_is_named(run):
    run.stages_file.write_text(run.stages_file.read_text()[:100])
    with pytest.raises(RunError, match=r"stages\.json: the file"):
        api.status(run)
    Stages().write(run.stages_file)
    run.manifest_file.write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json: the file"):
        run.manifest()


def test_a_disk_that_is_full_is_named_in_any_stage(run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    _edit(run, "data", test_fraction=0.3)
    monkeypatch.setattr("tunesmith.pipeline.data.write_split", full)
    with pytest.raises(RunError, match="data: the disk is full"):
        api.data(run)


def test_status_imports_no_torch(run):
    done = subprocess.run([sys.executable, "-c", STATUS, str(run.path)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False" and "train" in done.stdout, done.stderr


def test_looking_at_a_recipe_writes_nothing(tmp_path, tiny_dir):
    recipe, place = write_recipe(tmp_path, tiny_dir), tmp_path / "new"
    before = sorted(tmp_path.rglob("*"))
    for look in (api.status, api.dry_run):
        assert {state.state for state in look(api.look_at(recipe, place)).stages} == {"never"}
    assert sorted(tmp_path.rglob("*")) == before
    api.run(api.open_run(recipe, place), until="render")
    text = (place / "recipe.yaml").read_text()
    write_recipe(tmp_path, tiny_dir, {"train.max_length": 100})
    planned = api.status(api.look_at(recipe, place))
    assert planned["data"].state == "done" and planned["render"].why == ("train.max_length 128 -> 100",)
    assert (place / "recipe.yaml").read_text() == text
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text())
    with pytest.raises(RunError, match=r"is the run of .*toy\.yaml, .*other\.yaml differs"):
        api.look_at(other, place)


def test_a_run_can_be_planned_stopped_and_forced(run, tmp_path, tiny_dir):
    made = api.open_run(write_recipe(tmp_path, tiny_dir), tmp_path / "new")
    api.run(made, until="render")
    assert set(made.stages()) == {"data", "render"}
    before = run.stages()["report"].began
    api.run(run, force=["report"])
    assert run.stages()["report"].began >= before and json.loads(run.stages_file.read_text())["version"] == 1
