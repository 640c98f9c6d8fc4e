import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    LlamaConfig,
)

from tunesmith.errors import ExportError
from tunesmith.export.forms.vllm_adapter import keys_are_values, write_vllm_adapter
from tunesmith.export.merge import merge, read_updates
from tunesmith.models.adapter import CONFIG, WEIGHTS, save_adapter
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora

S, F = "sliding_attention", "full_attention"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "initializer_range": 0.15, "pad_token_id": 0}
K_IS_V = {"layer_types": [S, F] * 2, "num_hidden_layers": 4, "global_head_dim": 16, "num_global_key_value_heads": 1}
K_IS_V |= {"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 8}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def trained(tmp_path, config, kind=None, **options):
    """A random checkpoint in ``base`` and a random adapter in ``adapter``."""
    torch.manual_seed(0)
    (kind(config) if kind else AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path / "base")
    lora = Lora(r=4, alpha=12, **options)
    layers = add_lora(load_model(tmp_path / "base", "fp32"), lora, seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", layers, lora, "base")
    return tmp_path / "base", tmp_path / "adapter", tmp_path / "vllm"


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."], ids=["text", "multimodal"])
def test_an_adapter_on_keys_that_are_values_reaches_both(prefix, tmp_path):
    config, kind = Gemma4TextConfig(**{**SMALL, **K_IS_V}), None
    if prefix != "model.":
        vision = {**VISION, "num_key_value_heads": 2, "head_dim": 8}
        config = Gemma4Config(text_config=config.to_dict(), vision_config=vision, audio_config=None, initializer_range=0.15)
        kind = Gemma4ForConditionalGeneration
    base, adapter, target = trained(tmp_path, config, kind)
    assert write_vllm_adapter(base, adapter, target) == 2
    ours, theirs = load_file(adapter / WEIGHTS), load_file(target / WEIGHTS)
    added = {key for key in theirs if key.replace(prefix, "model.") not in ours}
    assert len(added) == 4 and all(".v_proj." in key and (".1." in key or ".3." in key) for key in added)
    assert f"{prefix}layers.3.self_attn.v_proj" in json.loads((target / CONFIG).read_text())["target_modules"]
    # vLLM puts the keys' weight into both slots and adds to each its own adapter; both have to become the merged k_proj.
    merge(base, adapter, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    loaded, updates = load_file(base / "model.safetensors"), read_updates(target)
    for layer in (1, 3):
        name = f"{prefix}layers.{layer}.self_attn"
        (update,) = updates[f"{name}.v_proj.weight"]
        values_OI = loaded[f"{name}.k_proj.weight"] + update.left_OR @ update.right_RI
        torch.testing.assert_close(values_OI, merged[f"model.layers.{layer}.self_attn.k_proj.weight"], rtol=1e-6, atol=1e-6)


def test_a_multimodal_base_gives_its_names(tmp_path):
    text = {**SMALL, "query_pre_attn_scalar": 16, "layer_types": [S, F], "sliding_window": 8}
    config = Gemma3Config(text_config=text, vision_config={**VISION, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4)
    base, adapter, target = trained(tmp_path, config, Gemma3ForConditionalGeneration)
    assert write_vllm_adapter(base, adapter, target) == 0
    ours, theirs = load_file(adapter / WEIGHTS), load_file(target / WEIGHTS)
    assert len(ours) == len(theirs)
    known = load_file(base / "model.safetensors")
    for key, tensor in theirs.items():
        layer, _, leaf = key.removeprefix("base_model.model.").rpartition(".lora_")
        assert (
            tensor.shape[1 if leaf.startswith("A") else 0] == known[f"{layer}.weight"].shape[1 if leaf.startswith("A") else 0]
        )


def test_nothing_is_written_where_the_plain_adapter_serves(tmp_path):
    assert write_vllm_adapter(*trained(tmp_path, LlamaConfig(**SMALL))) is None
    assert not (tmp_path / "vllm").exists()
    assert keys_are_values(["a.0.k_proj.weight", "a.0.v_proj.weight", "a.1.k_proj.weight", "a.1.q_proj.weight"]) == ["a.1"]


def test_what_vllm_does_not_apply_is_refused(tmp_path):
    base, adapter, target = trained(tmp_path, Gemma4TextConfig(**{**SMALL, **K_IS_V}))
    config = json.loads((adapter / CONFIG).read_text())
    for change, words in [({"use_dora": True}, "does not apply DoRA"), ({"r": 1024}, "rank 1024, vLLM takes 512 at most")]:
        (adapter / CONFIG).write_text(json.dumps({**config, **change}))
        with pytest.raises(ExportError, match=words):
            write_vllm_adapter(base, adapter, target)
    assert not target.exists()
