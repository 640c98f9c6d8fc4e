"""A base under a budget of bytes, through the verbs: chosen once, the same to train on, to ask, to merge, and for two ranks."""

import dataclasses

import pytest

from shared import write_recipe
from tunesmith.bits.choose import Option
from tunesmith.engines.base import open_base
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.mixed import quantized_layers
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.base_forms import correct, pairs_of
from tunesmith.pipeline.base_stage import BASE
from tunesmith.pipeline.export import job_of, planned
from tunesmith.pipeline.inputs import Inputs
from tunesmith.pipeline.plan import plan
from tunesmith.recipe import load_recipe
from tunesmith.rundir import sha256_file
from tunesmith.rundir.records.base_forms import BaseForms
from tunesmith.rundir.records.export import Merge
from tunesmith.train.documents import make_documents

NF4 = {"base": "nf4", "train.compute": "fp32", "train.learning_rate": 0.02}


def _run(folder, model, changes):
    folder.mkdir(exist_ok=True)
    run = api.open_run(write_recipe(folder, model, {**NF4, **changes}), folder / "run")
    api.data(run)
    api.render(run)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dir):
    run = _run(tmp_path_factory.mktemp("budget"), tiny_dir, {"base_budget": "+1%"})
    api.train(run)
    return run


def test_the_choice_keeps_to_the_budget_and_gives_more_bits_to_what_gains_most(run):
    chosen = BaseForms.read(run.base_forms_file)
    forms = {each.module: each.form for each in chosen.modules}
    assert chosen.nf4_bytes < chosen.bytes <= chosen.budget_bytes == int(chosen.nf4_bytes * 1.01)
    assert len(forms) == 14 and {"nf4", "Q8_0"} <= set(forms.values())
    assert all(each.kl <= each.nf4_kl for each in chosen.modules)
    assert sum(each.measured is not None for each in chosen.modules) == 14
    assert run.manifest().model["base_forms"]["layers"]["Q8_0"] == list(forms.values()).count("Q8_0")
    layers = quantized_layers(base_of(run, run.recipe()).load().model)
    kinds = {name: layer.weight.kind if hasattr(layer.weight, "kind") else "nf4" for name, layer in layers.items()}
    assert kinds == forms
    before = sha256_file(run.base_forms_file)
    assert api.status(run)["base"].state == "done" and sha256_file(run.base_forms_file) == before


def test_the_merge_is_what_was_trained(run):
    recipe = run.recipe()
    job = dataclasses.replace(job_of(run, recipe), staged=run.export)
    for step in planned(run, recipe, recipe.lora):
        if step.kind in ("merge", "measure"):
            job.results[step.target] = step.write(job, step)
    losses = Merge.read(run.export / "merge.json").dev_loss
    assert losses.trained == pytest.approx(losses.adapter, abs=1e-4)
    assert abs(losses.original - losses.adapter) > 10 * abs(losses.trained - losses.adapter)


def test_two_ranks_train_on_the_same_choice(run, tmp_path, tiny_dir):
    other = _run(tmp_path / "two", tiny_dir, {"base_budget": "+1%", "train.ranks": 2})
    api.train(other)
    assert other.base_forms_file.read_bytes() == run.base_forms_file.read_bytes()
    adapters = {(each.adapter / "adapter_model.safetensors").read_bytes() for each in (run, other)}
    assert len(adapters) == 1


def test_a_budget_too_small_says_the_least_and_a_base_without_a_choice_is_not_loaded(tmp_path, tiny_dir):
    small = _run(tmp_path / "small", tiny_dir, {"base_budget": "1MB"})
    with pytest.raises(RecipeError, match=r"base_budget: 1MB is less than the 0.0\d+GB that this base takes") as caught:
        api.train(small)
    with pytest.raises(RecipeError, match="base_budget: 1MB is less than"):
        plan(str(write_recipe(tmp_path, tiny_dir, {**NF4, "base_budget": "1MB"})), gpu="T4")
    least = caught.value.hint.split()[1]
    enough = _run(tmp_path / "enough", tiny_dir, {"base_budget": least})
    with pytest.raises(ModelError, match=f"base_budget: {least}: what each layer is kept in is chosen in a run"):
        open_base(enough.recipe()).load()
    api.train(enough)
    assert BaseForms.read(enough.base_forms_file).budget == least


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "bf16"}, "base is bf16; write base: nf4, or leave base_budget out"),
        ({"base_budget": "10%"}, r"expected auto, a share like \+10% or an amount like 6.5GB"),
        ({"base_budget": 6500000000}, "or an amount like 6.5GB"),
        ({"train.resident_layers": 1}, "not with train.resident_layers: 1"),
        ({"train.shard": True}, "not with train.shard: true"),
        ({"tuned": {"adapter": "."}}, "not with tuned"),
    ],
)
def test_what_a_budget_does_not_go_with_is_refused_by_the_recipe(tmp_path, tiny_dir, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path, tiny_dir, {"base": "nf4", "base_budget": "+10%", **changes}))


def test_only_auto_is_chosen_anew_when_the_plan_of_the_training_is_another(run, tmp_path, tiny_dir):
    def parts(budget, **changes):
        recipe = load_recipe(write_recipe(tmp_path, tiny_dir, {**NF4, "base_budget": budget, **changes}))
        return BASE.inputs(Inputs(run, recipe))

    longer = {"train.max_length": 77}
    assert parts("+1%") == parts("+1%", **longer)
    assert parts("auto") != parts("auto", **longer)


def test_what_the_first_token_is_in_is_measured_from_the_second_on():
    documents = make_documents([([5, 6, 7], [1, 1, 1]), ([8, 9, 5, 6], [0, 1, 0, 1])])
    assert pairs_of(documents, [1, 0]) == [([5], [6, 7]), ([8], [9]), ([8, 9, 5], [6])]


def test_what_was_measured_takes_the_place_of_what_was_foretold():
    costs = {"a": 8.0, "b": 4.0, "c": 2.0, "d": 1.0}
    options = {name: (Option("nf4", 1, cost), Option("Q8_0", 2, cost / 100)) for name, cost in costs.items()}
    corrected, correlation = correct(options, {"a": 4.0, "b": 8.0, "c": 2.0})
    assert {name: [option.cost for option in forms] for name, forms in corrected.items()} == {
        "a": [4.0, 0.04],
        "b": [8.0, 0.08],
        "c": [2.0, 0.02],
        "d": [1.0, 0.01],  # by the median of one half, two and one
    }
    assert correlation == pytest.approx(0.5)
    assert correct(options, {}) == (options, None)
