import peft.utils.constants
import pytest
import torch

from tunesmith.errors import TrainingError
from tunesmith.layers.lora import LoRALinear
from tunesmith.models.families import FAMILIES
from tunesmith.models.swap import add_lora, merge_lora, target_names
from tunesmith.recipe import Lora


def _peft_names(model, target_modules):
    import peft

    config = peft.LoraConfig(target_modules=target_modules, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    names = {n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    wrapped.unload()
    return names


@pytest.mark.parametrize(
    ("ours", "pefts"),
    [
        ("all-linear", "all-linear"),
        ("peft-default", None),
        (("up_proj", "k_proj"), ["up_proj", "k_proj"]),
        (r".*\.1\.mlp\.(up|down)_proj", r".*\.1\.mlp\.(up|down)_proj"),
    ],
)
def test_targets_are_those_of_peft(tiny_model, ours, pefts):
    assert set(target_names(tiny_model, ours)) == _peft_names(tiny_model, pefts)


def test_every_familys_default_is_the_one_peft_ships():
    mapping = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for name, family in FAMILIES.items():
        assert tuple(mapping[name]) == family.peft_default_targets, name


@pytest.mark.parametrize(
    ("targets", "words"), [("nothing", "matches no linear"), (("up_proj", "upp"), "'upp'"), ("(", "not a regular")]
)
def test_targets_that_match_nothing(tiny_model, targets, words):
    with pytest.raises(TrainingError, match=words):
        target_names(tiny_model, targets)


def test_swap_shares_weights_starts_as_the_base_and_merges_to_the_same_function(tiny_model):
    ids = torch.randint(5, 49000, (1, 9))
    with torch.no_grad():
        base = tiny_model(ids).logits
        weight = tiny_model.model.layers[0].self_attn.q_proj.weight
        layers = add_lora(tiny_model, Lora(r=4), seed=3)
        assert tiny_model.model.layers[0].self_attn.q_proj.weight.data_ptr() == weight.data_ptr()
        assert torch.equal(tiny_model(ids).logits, base)
        for layer in layers.values():
            layer.lora_B.normal_(std=0.05)
        tuned = tiny_model(ids).logits
        merge_lora(tiny_model, layers)
    assert not any(isinstance(m, LoRALinear) for m in tiny_model.modules())
    assert (tuned - base).abs().max() > 0.1
    torch.testing.assert_close(tiny_model(ids).logits, tuned, rtol=1e-4, atol=1e-4)


def test_initialisation_follows_the_seed_alone(tiny_dir):
    from tunesmith.models.load import load_model

    def draw(seed):
        torch.manual_seed(torch.seed() % 2**31)
        return next(iter(add_lora(load_model(tiny_dir, "fp32"), Lora(r=2), seed).values())).lora_A

    assert torch.equal(draw(5), draw(5)) and not torch.equal(draw(5), draw(6))
