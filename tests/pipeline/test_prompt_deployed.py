"""The arm ``prompt_deployed`` on the tiny run: one engine and file type for both sides, and the verdict that follows."""

import shutil

import pytest

from tunesmith.errors import RecipeError
from tunesmith.evaluate.arms import read_outputs
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import dump_recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.export import Export

ARMS = ("few_shot", "tuned", "deployed", "prompt_deployed")


def _change(run, **sections):
    recipe = run.recipe()
    changed = {name: getattr(recipe, name).model_copy(update=keys) for name, keys in sections.items()}
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update=changed)))


def test_a_run_whose_saving_pays_ends_as_good_and_cheaper(tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    train = run.stages()["train"]
    prices = {"calls_per_month": 1e6, "price_per_million_prompt_tokens": 10.0, "hosting_per_month": 1.0}
    _change(run, evaluate={"arms": ARMS, "price_per_hour": 2.0}, task={"min_gain": 0.9}, advise=prices)
    verdict = api.run(run)
    assert run.stages()["train"] == train
    assert (run.export / "toy-base-Q4_K_M.gguf").exists()
    assert list(Export.read(run.export / "export.json").files) == [
        "Q8_0",
        "Q4_K_M",
    ]
    selection = Selection.read(run.evaluation / "selection.json")
    asked, answers = read_outputs(run.answers(selection.base_prompt)), read_outputs(run.answers("prompt_deployed"))
    assert [row.prompt for row in answers] == [row.prompt for row in asked]
    assert [row.output for row in answers] != [row.output for row in read_outputs(run.answers("deployed"))]
    saving, deployed, prompt = verdict.saving, verdict.arm("deployed"), verdict.arm("prompt_deployed")
    assert saving.prompt_tokens == pytest.approx(prompt.prompt_tokens - deployed.prompt_tokens) and saving.prompt_tokens > 0
    assert saving.ms == pytest.approx(prompt.ms - deployed.ms) and saving.hours == pytest.approx(train.seconds / 3600)
    assert saving.a_month == pytest.approx(10.0 * saving.prompt_tokens - 1.0)
    assert saving.cost == pytest.approx(2.0 * saving.hours)
    assert saving.calls * saving.a_call - saving.hosting * saving.days / 30 == pytest.approx(saving.cost)
    assert (verdict.decision, verdict.exit_code) == ("as good and cheaper", 16)
    page = (run.path / "report.html").read_text()
    assert "Verdict: as good and cheaper" in page and "What calls take: " in page
    before = run.stages()
    _change(run, advise={**prices, "hosting_per_month": 1e9})
    assert api.run(run).decision != "as good and cheaper"  # and nothing was asked or written anew for a price
    assert {name for name, stage in run.stages().items() if stage != before[name]} == {"verdict", "report"}


@pytest.mark.parametrize("arms", [["few_shot", "tuned", "prompt_deployed"], ["external:big", "deployed", "prompt_deployed"]])
def test_the_arm_needs_both_sides(make_recipe, arms):
    endpoint = {"big": {"base_url": "http://localhost:1/v1", "model": "m"}} if "external:big" in arms else {}
    with pytest.raises(RecipeError, match="prompt_deployed compares a prompt of the base model with deployed"):
        make_recipe({"evaluate.arms": arms, "evaluate.external": endpoint})
