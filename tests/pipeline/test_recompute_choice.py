"""``train.recompute: auto`` on a GPU of some size, which the numbers of the model and of the card decide."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from tunesmith.pipeline import recompute_choice
from tunesmith.pipeline.recompute_choice import choose_recompute
from tunesmith.recipe import Lora, Train
from tunesmith.recipe.derive import derive

LARGE = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8, vocab_size=128256)


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """``choose(memory, device, **train)``: the settings of a run of 8B in NF4, and the lines that are printed."""
    LARGE.save_pretrained(tmp_path)
    base = SimpleNamespace(directory=tmp_path, storage="nf4", compute="bf16")

    def run(memory, device="cuda", spared=None, **train):
        layers = None if spared is None else SimpleNamespace(spared=spared)
        monkeypatch.setattr(recompute_choice, "layers_of", lambda _: layers)
        monkeypatch.setattr(recompute_choice, "usable_memory", lambda _: int(memory))
        model = SimpleNamespace(device=torch.device(device))
        derived = derive(Train(tokens_per_step=8192, **train), rows=900, tokens=2e5, hidden=4096)
        return choose_recompute(derived, SimpleNamespace(model=model, base=base, lora=Lora()))

    return run


def test_auto_follows_from_the_card_and_says_why(choose):
    roomy, tight = choose(80e9), choose(12e9)
    assert (roomy.settings.recompute, tight.settings.recompute) == ("none", "layer")
    assert roomy.lines[-1].startswith("recompute none = the first that fits: GB needed, with a twentieth to spare: none ")
    assert "layer " in tight.lines[-1] and tight.lines[-1].endswith("12.0 are free for it")
    assert "the smallest, and it may not fit" in choose(4e9).lines[-1]


def test_layers_that_are_streamed_leave_room(choose):
    before, after = choose(8e9), choose(8e9, spared=int(3.4e9))
    assert "the smallest, and it may not fit" in before.lines[-1] and "the first that fits" in after.lines[-1]


def test_what_the_recipe_says_wins_and_a_cpu_keeps_everything(choose):
    assert choose(4e9, recompute="mlp").settings.recompute == "mlp"
    assert choose(4e9, recompute=3).lines == choose(80e9, recompute=3).lines
    on_cpu = choose(1, device="cpu")
    assert on_cpu.settings.recompute == "none" and len(on_cpu.lines) == 3


def test_a_model_whose_sizes_are_not_known_takes_least(choose, tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    found = choose(80e9)
    assert found.settings.recompute == "layer" and "no number for num_hidden_layers" in found.lines[-1]
