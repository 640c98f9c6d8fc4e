"""Several seeds and the learning curve: runs inside a run."""

import shutil

import pytest

from outputs import arms_that_read
from shared import write_recipe
from tunesmith.errors import RecipeError, RunError
from tunesmith.evaluate.arms import read_outputs
from tunesmith.models.adapter import read_adapter
from tunesmith.pipeline.curve import share_of
from tunesmith.pipeline.verbs import learning_curve, seeds, status
from tunesmith.recipe import dump_recipe, load_recipe
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.answers import Scores
from tunesmith.train.documents import Documents

SHARES = (0.25, 0.5, 1.0)
JUDGED = {
    "task.metric": "judge",
    "task.json_schema": None,
    "task.judge": {"base_url": "http://localhost:1/v1", "model": "x", "rubric": "y"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_run):
    """The tiny run, which now asks for two seeds and a curve."""
    run = RunDir(tmp_path_factory.mktemp("subruns") / "run")
    shutil.copytree(tiny_run.path, run.path)
    recipe = tiny_run.recipe()
    asked = recipe.evaluate.model_copy(update={"seeds": 2, "learning_curve": SHARES})
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"evaluate": asked})))
    return run


def test_seeds_differ_in_nothing_but_the_seed_and_none_is_trained_twice(run):
    assert status(run)["seeds"].state == "never"
    found = seeds(run)
    inner = RunDir(run.path / "seeds" / "1")
    own, other = run.recipe().model_dump(mode="json"), inner.recipe().model_dump(mode="json")
    assert other["seed"] == own["seed"] + 1
    for recipe in (own, other):
        for key in ("seeds", "learning_curve"):
            del recipe["evaluate"][key]
    assert {**own, "seed": 0} == {**other, "seed": 0}
    first, second = read_adapter(run.adapter), read_adapter(inner.adapter)
    assert first.keys() == second.keys() and any((first[name] != second[name]).any() for name in first)
    asked = [[(row.id, row.prompt) for row in read_outputs(at.evaluation / "tuned")] for at in (run, inner)]
    assert asked[0] == asked[1]
    scores = [Scores.read(at.evaluation / "tuned/scores.json").summary.score for at in (run, inner)]
    assert [entry.score for entry in found.runs] == scores
    assert found.mean == pytest.approx(sum(scores) / 2) and found.sd == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert found.n == len(asked[0])
    read = arms_that_read(run)
    assert read[-1] == "tuned seed 1" and "tuned seed 1" not in read[:-1]
    adapter = (inner.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert seeds(run) == found and (inner.adapter / "adapter_model.safetensors").stat().st_mtime_ns == adapter
    assert arms_that_read(run) == read


def test_shares_are_nested_and_do_not_depend_on_the_order_of_rows(run):
    rows = read_rows(run.data / "train.jsonl")
    recipe = run.recipe()
    shares = [{row.id for row in share_of(recipe, rows, share)} for share in (0.1, 0.25, 0.6, 1.0)]
    assert shares[0] < shares[1] < shares[2] < shares[3] == {row.id for row in rows}
    assert {row.id for row in share_of(recipe, rows[::-1], 0.25)} == shares[1]
    other = recipe.model_copy(update={"seed": 5})
    assert {row.id for row in share_of(other, rows, 0.25)} != shares[1]
    with pytest.raises(RunError, match="is no row"):
        share_of(recipe, rows, 0.001)


def test_curve_trains_on_shares_of_train_and_scores_on_dev_alone(run):
    seeds(run)
    sealed = arms_that_read(run)
    found = learning_curve(run)
    assert arms_that_read(run) == sealed
    train, dev = (read_rows(run.data / f"{part}.jsonl") for part in ("train", "dev"))
    assert [point.rows for point in found.points] == [round(share * len(train)) for share in SHARES]
    assert [gain.rows for gain in found.gains] == [2 * len(train), 4 * len(train)]
    for share, point in zip(SHARES, found.points, strict=True):
        outputs = read_outputs(run.path / f"curve/{share:g}/dev")
        assert [output.id for output in outputs] == [row.id for row in dev]
        assert point.value == pytest.approx(sum(output.score for output in outputs) / len(dev))
    inner = RunDir(run.path / "curve" / "0.25")
    trained = Documents.open(inner.tokens("train"))
    share = {row.id for row in share_of(run.recipe(), train, 0.25)}
    assert {trained.row_id(document) for document in range(len(trained))} == share
    assert not (inner.data / "test.jsonl").exists() and not (run.path / "curve" / "1" / "recipe.yaml").exists()
    assert found.dev_rows == len(dev) and found.seed_sd == seeds(run).sd
    stages = inner.stages()
    assert learning_curve(run) == found and inner.stages() == stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate.learning_curve": [0.5, 1.0]}, "three shares"),
        ({"evaluate.learning_curve": [0.1, 0.2, 0.5]}, "1.0"),
        ({"evaluate.learning_curve": [0.0, 0.5, 1.0]}, "learning_curve"),
        ({"evaluate.seeds": 2, "evaluate.arms": ["zero_shot", "deployed"]}, "arm tuned"),
        ({"evaluate.seeds": 2, **JUDGED}, "scores an answer by itself"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(tmp_path, tiny_dir, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path, tiny_dir, changes))


def test_one_seed_and_no_curve_do_nothing(tiny_run):
    assert seeds(tiny_run) is None and learning_curve(tiny_run) is None
