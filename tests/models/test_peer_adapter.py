"""Adapters of other tools compute here what they compute there, in fp32 to 1e-5."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tunesmith.errors import ModelError
from tunesmith.models.adapter import load_adapted
from tunesmith.models.load import load_model
from tunesmith.models.peer_adapter import peft_form, tool_of

IDS = torch.arange(5, 45)[None]
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


@pytest.fixture(scope="module", params=KINDS)
def of_peft(request, tiny_dir, tmp_path_factory):
    """A directory that PEFT wrote, and PEFT's own logits with it."""
    folder = tmp_path_factory.mktemp("peft")
    torch.manual_seed(1)
    lora = LoraConfig(
        r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **KINDS[request.param]
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), lora).save_pretrained(folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_dir), folder).eval()
    with torch.no_grad():
        return request.param, folder, model(input_ids=IDS).logits


def _close(tiny_dir, adapter, expected):
    model = load_model(tiny_dir, "fp32")
    load_adapted(model, adapter)
    with torch.no_grad():
        ours = model(input_ids=IDS).logits
        assert (load_model(tiny_dir, "fp32")(input_ids=IDS).logits - expected).abs().max() > 0.1
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_pefts_form(of_peft, tiny_dir, tmp_path):
    _, folder, expected = of_peft
    assert peft_form(folder, tmp_path) == [] and tool_of(folder) == "PEFT"
    _close(tiny_dir, tmp_path, expected)


def _as_mlx(folder, target, kind):
    """The same adapter in the layout that mlx-lm publishes."""
    state, facts = load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())
    mlx = {}
    for name, tensor in state.items():
        module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        part = "m" if "magnitude" in name else "lora_a" if ".lora_A" in name else "lora_b"
        mlx[f"{module}.{part}"] = tensor if part == "m" else tensor.T.contiguous()
    scale = facts["lora_alpha"] / (facts["r"] ** 0.5 if facts["use_rslora"] else facts["r"])
    target.mkdir()
    save_file(mlx, target / "adapters.safetensors")
    settings = {"rank": facts["r"], "scale": scale, "dropout": 0.0}
    config = {"fine_tune_type": "dora" if kind == "dora" else "lora", "num_layers": 2, "lora_parameters": settings}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return mlx, config


def test_mlx_form(of_peft, tiny_dir, tmp_path):
    kind, folder, expected = of_peft
    source, target = tmp_path / "mlx", tmp_path / "peft"
    target.mkdir()
    _as_mlx(folder, source, kind)
    (line,) = peft_form(source, target)
    assert "converted from mlx-lm's form: 4 layers" in line and "scale" in line and tool_of(source) == "mlx-lm"
    _close(tiny_dir, target, expected)


@pytest.mark.parametrize("of_peft", ["lora"], indirect=True)
@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"fine_tune_type": "full"}, {}, "fine_tune_type is 'full'"),
        ({"lora_parameters": {"rank": 4}}, {}, "scale is None"),
        ({}, {"model.embed_tokens.weight": torch.ones(2, 2)}, "embed_tokens.weight is not expected"),
        ({}, {"model.layers.0.mlp.down_proj.lora_b": torch.ones(2, 4, 64)}, r"factors of shape .* expected \(in, rank\)"),
    ],
)
def test_what_an_mlx_file_may_hold_and_a_lora_cannot_is_refused(of_peft, tmp_path, config, tensors, words):
    kind, folder, _ = of_peft
    source, target = tmp_path / "mlx", tmp_path / "peft"
    target.mkdir()
    mlx, known = _as_mlx(folder, source, kind)
    save_file({**mlx, **tensors}, source / "adapters.safetensors")
    (source / "adapter_config.json").write_text(json.dumps(known | config))
    with pytest.raises(ModelError, match=words) as caught:
        peft_form(source, target)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("card", "tool"),
    [
        ("---\nlibrary_name: peft\ntags:\n- unsloth\n- trl\n---\n", "Unsloth"),
        ("---\ntags:\n- sft\n- trl\n---\n", "TRL"),
        ("---\ntags:\n- axolotl\n---\n", "Axolotl"),
        ("---\ntags:\n- llama-factory\n---\n", "LLaMA-Factory"),
        ("No front matter.\n", None),
    ],
)
def test_the_tool_is_told_from_the_card(tmp_path, card, tool):
    (tmp_path / "README.md").write_text(card)
    assert tool_of(tmp_path) == tool
