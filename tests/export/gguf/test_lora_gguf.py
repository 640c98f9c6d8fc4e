"""A LoRA GGUF against what merging adds, in llama.cpp's own layout and in PEFT's."""

import json
from pathlib import Path

import gguf
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llama_cpp_sources import convert_here, run_here
from tiny_families import TINY, adapted, random_model
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ExportError
from tunesmith.export.gguf import lora as lora_gguf
from tunesmith.export.gguf.lora import write_lora_gguf
from tunesmith.export.merge import merge
from tunesmith.models.adapter import CONFIG, WEIGHTS, save_adapter
from tunesmith.models.load import load_model
from tunesmith.recipe import Lora


def trained(folder, name, target_modules="all-linear", **options):
    """A random checkpoint and a random adapter of a family."""
    random_model(TINY[name].config).save_pretrained(folder / "base")
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules=target_modules, **options)
    layers = adapted(load_model(folder / "base", "fp32"), target_modules, **options)
    (folder / "adapter").mkdir()
    save_adapter(folder / "adapter", layers, lora, "base")
    return folder / "adapter", folder / "base"


def tensors_of(directory):
    """A model directory as llama.cpp's converter lays it out, in fp32, without the tables of the tokenizer."""
    target = convert_here(directory, "ALL_F32", lambda self: None)
    return {tensor.name: tensor.data for tensor in GgufReader(target).tensors}


def deltas(path):
    """What llama.cpp adds: ``alpha / rank B A`` by the name of the weight."""
    reader = GgufReader(path)
    assert reader.fields["general.type"].contents() == "adapter"
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = {name.rpartition(".lora_")[0] for name in tensors}
    return {name: alpha / 4 * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"] for name in weights}


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "gemma4-e", "gemma4-31b"])
def test_llama_cpp_adds_what_merging_adds(name, rslora, tmp_path):
    """llama reorders the rows of q and k, phi3 fuses q, k and v, gemma4-31b has layers whose values are their keys."""
    adapter, base = trained(tmp_path, name, use_rslora=rslora)
    factors = write_lora_gguf(adapter, base, tmp_path / "lora.gguf")
    added = deltas(tmp_path / "lora.gguf")
    assert factors == len(load_file(adapter / WEIGHTS))
    merge(base, adapter, tmp_path / "merged")
    before, after = tensors_of(base), tensors_of(tmp_path / "merged")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == added.keys() and len(added) * 2 == factors
    for weight, delta in added.items():
        np.testing.assert_allclose(after[weight] - before[weight], delta, rtol=0, atol=2e-6)


def test_the_update_is_pefts(tmp_path):
    """Through the child process, as a run does it; the names and the scale are PEFT's own."""
    adapter, base = trained(tmp_path, "gemma3", use_rslora=True)
    write_lora_gguf(adapter, base, tmp_path / "lora.gguf")
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 2)
    expected = {
        names.get_name(name.removeprefix("base_model.model.")) + ".weight": layer.get_delta_weight("default").detach().numpy()
        for name, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.Linear)
    }
    found = deltas(tmp_path / "lora.gguf")
    assert found.keys() == expected.keys() and len(found) == 14
    for name, delta in expected.items():
        np.testing.assert_allclose(found[name], delta, rtol=0, atol=1e-6)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"base", "adapter", "lora.gguf"}


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("llama", {"use_dora": True}, "does not apply DoRA"),
        ("qwen3_moe", {}, "stacked experts, first model.layers.0.mlp.experts.down_proj"),
        ("gemma4-e", {"target_modules": ("q_proj", "per_layer_model_projection")}, "per_layer_model_projection has no effect"),
    ],
)
def test_what_llama_cpp_would_not_apply_is_refused_by_name(name, options, named, tmp_path):
    adapter, base = trained(tmp_path, name, **options)
    with pytest.raises(ExportError, match=named) as error:
        write_lora_gguf(adapter, base, tmp_path / "lora.gguf")
    assert "merged GGUF" in error.value.hint and not (tmp_path / "lora.gguf").exists()


@pytest.mark.parametrize(
    ("layer", "facts", "named"),
    [
        ("lm_head.lora_A.weight", {}, "lm_head is tied"),
        ("model.embed_tokens.lora_embedding_A", {}, "embed_tokens.lora_embedding_A is no factor"),
        ("lm_head.weight", {}, "lm_head.weight is no factor"),
        ("model.layers.0.mlp.up_proj.lora_A.weight", {"alpha_pattern": {"up_proj": 3}}, "alpha_pattern"),
    ],
)
def test_adapters_of_others_with_more_than_linear_layers_are_refused(layer, facts, named, tmp_path):
    adapter, base = trained(tmp_path, "smollm2", ("up_proj",))
    state = load_file(adapter / WEIGHTS)
    save_file({**state, f"base_model.model.{layer}": torch.ones(4, 32)}, adapter / WEIGHTS)
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, **facts}))
    with pytest.raises(ExportError, match=named):
        write_lora_gguf(adapter, base, tmp_path / "lora.gguf")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda state: state.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"), "failed|dropped"),
        (lambda state: state["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"].mul_(1.001), "not the same numbers"),
        (
            lambda state: [state.pop(key) for key in list(state) if ".1." in key],
            "layers.1.mlp.up_proj was dropped",
        ),
    ],
)
def test_a_file_that_is_not_the_adapter_is_not_kept(spoil, named, monkeypatch, tmp_path):
    adapter, base = trained(tmp_path, "smollm2", ("up_proj",))

    def other(script, arguments, target):
        """A converter that reads something else than what we trained."""
        weights = Path(arguments[0]) / WEIGHTS
        state = load_file(weights)
        spoil(state)
        weights.unlink()
        save_file(state, weights)
        try:
            run_here(script, arguments, target)
        except AssertionError as error:
            raise ExportError("failed", "") from error

    monkeypatch.setattr(lora_gguf, "run_converter", other)
    with pytest.raises(ExportError, match=named):
        write_lora_gguf(adapter, base, tmp_path / "lora.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
