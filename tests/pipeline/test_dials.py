"""``train.memory`` on a GPU of some size: the dials that a recipe leaves alone, turned until the training fits."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from tunesmith.engines.base import BaseModel
from tunesmith.errors import ModelError, RecipeError
from tunesmith.pipeline import dials
from tunesmith.recipe import Lora, Train, recipe_from
from tunesmith.recipe.derive import derive

LARGE = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
)


@pytest.fixture
def a_card(tmp_path, monkeypatch):
    """``a_card(memory, device)``: a GPU with so many bytes free, and a base of 8B in NF4."""
    LARGE.save_pretrained(tmp_path)

    def make(memory, device="cuda"):
        monkeypatch.setattr(dials, "usable_memory", lambda _: int(memory))
        monkeypatch.setattr(dials, "best_device", lambda: torch.device(device))
        monkeypatch.setattr(dials, "device_name", lambda _: "NVIDIA GeForce RTX 4090")
        base = BaseModel(model="8b", base="nf4", arithmetic="bf16")
        base.__dict__.update(directory=tmp_path)
        return base

    return make


ADAPTED = {"q": SimpleNamespace(lora_A=torch.empty(Lora().r, 1))}


@pytest.fixture
def choose(a_card):
    """``choose(memory, device, **train)``: the settings of a run, and the lines that are printed."""

    def run(free, device="cuda", longest=None, **train):
        loaded = SimpleNamespace(
            model=SimpleNamespace(device=torch.device(device)), base=a_card(free, device), lora=Lora(), layers=ADAPTED
        )
        return dials.choose_dials(
            derive(Train(**{"tokens_per_step": 8192, **train}), rows=900, tokens=2e5, hidden=4096), loaded, longest
        )

    return run


def _recipe(tmp_path, **train):
    raw = {"model": "8b", "data": {"path": "rows.jsonl"}, "task": {"metric": "exact_match"}, "base": "nf4", "train": train}
    return recipe_from(raw, tmp_path, "test")


def test_auto_follows_from_the_card_and_says_why(choose):
    roomy, tight, least = choose(80e9), choose(8.8e9), choose(2e9)
    assert (roomy.settings.recompute, tight.settings.recompute) == ("none", "layer")
    assert roomy.lines[-1].startswith("recompute none = the fastest plan that fits: 1") and "of 80.00 GB" in roomy.lines[-1]
    assert "the least there is, and it may not fit" in least.lines[-1]
    between = choose(12e9).settings.recompute
    assert isinstance(between, tuple) or between in ("attention", "mlp")


def test_an_amount_is_a_limit(choose):
    assert choose(80e9, memory="9.3GB").settings.recompute == choose(8.8e9).settings.recompute
    assert choose(8.8e9, memory="80GB").lines == choose(8.8e9).lines


def test_long_packs_leave_the_card(choose):
    long = {"max_length": 65536, "tokens_per_step": 65536}
    roomy, tight = choose(30e9, **long).settings, choose(20e9, **long).settings
    assert (roomy.recompute, roomy.offload, roomy.mlp_tile) == ("layer", "inputs", 0)
    assert choose(30e9, longest=65536, **long).settings.offload == "attention"
    assert (tight.recompute, tight.offload) == ("layer", "inputs") and tight.mlp_tile in (4096, 32768)


def test_what_the_recipe_says_wins_and_a_cpu_keeps_everything(choose):
    assert choose(4e9, recompute="mlp").settings.recompute == "mlp"
    assert choose(4e9, recompute=3).lines == choose(80e9, recompute=3).lines
    assert choose(4e9, memory="off").settings.recompute == "none"
    on_cpu = choose(1, device="cpu")
    assert on_cpu.settings.recompute == "none" and len(on_cpu.lines) == 3


def test_a_policy_that_is_set_binds_no_other_dial(choose):
    long = {"max_length": 65536, "tokens_per_step": 65536, "recompute": "layer"}
    assert choose(60e9, **long).settings.offload == "none"
    tight = choose(30e9, **long)
    assert (tight.settings.recompute, tight.settings.offload) == ("layer", "inputs") and "offload inputs" in tight.lines[-1]


def test_a_model_whose_sizes_are_not_known_takes_least(choose, tmp_path, a_card):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    base = a_card(80e9)
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert dials.placed(base, _recipe(tmp_path)) is base
    loaded = SimpleNamespace(model=SimpleNamespace(device=torch.device("cuda")), base=base, lora=Lora(), layers=ADAPTED)
    found = dials.choose_dials(derive(Train(tokens_per_step=8192), rows=900, tokens=2e5, hidden=4096), loaded)
    assert found.settings.recompute == "layer" and "no usable number for num_hidden_layers" in found.lines[-1]


def test_the_loader_is_told_what_must_stream(a_card, tmp_path):
    def placed(free, device="cuda", **train):
        found = dials.placed(a_card(free, device), _recipe(tmp_path, **train))
        return found.resident_layers, found.embedding_on

    assert placed(80e9) == ("all", "device")
    layers, table = placed(5e9)
    assert isinstance(layers, int) and layers < 32
    assert placed(80e9, memory="5.5GB") == (layers, table)
    assert placed(5e9, memory="off") == ("all", "device") == placed(5e9, device="cpu")
    assert placed(5e9, resident_layers=20) == ("all", "device"), "what the recipe says is not turned"


@pytest.mark.parametrize("amount", ["16", "sixteen", "0GB"])
def test_what_is_no_amount_is_refused(tmp_path, amount):
    with pytest.raises(RecipeError, match=r"train\.memory"):
        _recipe(tmp_path, memory=amount)


def test_what_is_spare_can_be_spent_and_the_plan_stays_what_it_was(a_card, tmp_path):
    recipe = _recipe(tmp_path, max_length=2048)
    base = a_card(24e9)
    spare, more = dials.spare_bytes(base, recipe), dials.spare_bytes(a_card(25e9), recipe)
    assert 0.8e9 < more - spare < 1e9  # the allocator takes a part
    numbers = dials._largest(recipe.train)
    shape = dials._shape(base)
    free = dials.dials_of_run(base, recipe.lora, numbers)
    without, spent = (
        dials.plan_of(shape, each, "auto", torch.device("cuda")) for each in (free, replace(free, extra=more - 10**6))
    )
    dearer = dials.plan_of(shape, replace(free, extra=more + 10**9), "auto", torch.device("cuda"))
    assert without.fits and spent.fits and replace(spent.chosen.dials, extra=0) == without.chosen.dials
    assert replace(dearer.chosen.dials, extra=0) != without.chosen.dials
    with pytest.raises(ModelError, match="the plan streams layers from host memory, so none of the GPU's is spare"):
        dials.spare_bytes(a_card(5e9), recipe)
    with pytest.raises(ModelError, match=r"base_budget: \+10%: the plan streams layers from host memory"):
        dials.placed(replace_base(a_card(5e9), "+10%"), recipe)


def replace_base(base, budget):
    """The base under a budget, where it lies."""
    found = replace(base, budget=budget)
    found.__dict__.update(directory=base.directory)
    return found
