import peft.utils.constants
import pytest
import torch
import transformers

from tunesmith.errors import TrainingError
from tunesmith.families import FAMILIES, Family
from tunesmith.layers.lora import LoRALinear
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
        assert tuple(mapping.get(name, ())) == family.peft_default_targets, name


def test_a_family_without_a_peft_default_says_so(tiny_model, monkeypatch):
    monkeypatch.setattr("tunesmith.models.swap.FAMILIES", {"llama": Family("Llama", ())})
    with pytest.raises(TrainingError, match="no PEFT default"):
        target_names(tiny_model, "peft-default")


def test_all_linear_leaves_towers_alone_and_an_expression_reaches_them():
    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    model = transformers.Gemma3ForConditionalGeneration(config)
    names = target_names(model, "all-linear")
    assert len(names) == 2 * 7 and all(".language_model.layers." in name for name in names)
    assert any("vision_tower" in name for name in target_names(model, r".*vision_tower.*q_proj"))


def test_all_linear_leaves_per_layer_embeddings_alone():
    config = transformers.Gemma4TextConfig(
        vocab_size=300,
        vocab_size_per_layer_input=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=16,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    )
    model = transformers.Gemma4ForCausalLM(config)
    assert {name.rsplit(".", 1)[-1] for name in target_names(model, "all-linear")} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert target_names(model, ("per_layer_model_projection",)) == ["model.per_layer_model_projection"]


@pytest.mark.parametrize(
    ("targets", "words"), [("nothing", "matches no linear"), (("up_proj", "upp"), "'upp'"), ("(", "not a regular")]
)
def test_targets_that_match_nothing(tiny_model, targets, words):
    with pytest.raises(TrainingError, match=words):
        target_names(tiny_model, targets)


def test_swap_shares_weights_starts_as_the_base_and_merges_to_the_same_function(tiny_model):
    ids = torch.randint(5, 8000, (1, 9))
    with torch.no_grad():
        base = tiny_model(ids).logits
        weight = tiny_model.model.layers[0].self_attn.q_proj.weight
        layers = add_lora(tiny_model, Lora(r=4), seed=3)
        assert tiny_model.model.layers[0].self_attn.q_proj.weight.data_ptr() == weight.data_ptr()
        # Columns of zeros change the order of additions.
        torch.testing.assert_close(tiny_model(ids).logits, base, rtol=0, atol=1e-5)
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
