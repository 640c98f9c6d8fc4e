"""A whole training on a base that comes quantised: it learns, and what is merged is the dense model that it was trained on."""

import shutil

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssConfig, GptOssForCausalLM

from shared import VOCABULARY, _learn, write_recipe
from tiny_families import adapted
from tiny_quantised import quantise
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.one_type import write_one_type
from tunesmith.engines.base import open_base
from tunesmith.export.base import quantized_in_training
from tunesmith.export.merge import merge
from tunesmith.models.adapter import save_adapter
from tunesmith.models.load import load_model
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import Lora
from tunesmith.rundir.records.training import Training


@pytest.fixture
def mixture(tiny_dir, tmp_path):
    """A tiny mixture with the tokenizer of the tiny model, three steps old."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = GptOssConfig(
        **sizes, **tokens, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.05
    )
    model, tokenizer = GptOssForCausalLM(config), AutoTokenizer.from_pretrained(tiny_dir)
    _learn(model, tokenizer)
    model.bfloat16().save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize(("form", "base", "title"), [("gptq-order", "fp32", "GPTQ"), ("mxfp4", "nf4", "MXFP4")])
def test_a_training_from_rows_to_a_merged_model(form, base, title, tiny_dir, tmp_path, request, caplog):
    dense = request.getfixturevalue("mixture") if form == "mxfp4" else shutil.copytree(tiny_dir, tmp_path / "dense")
    weights = quantise(dense, tmp_path / "base", form)
    changes = {"base": base, "train.compute": "fp32", "lora.target_modules": ["q_proj", "v_proj"]}
    run = api.open_run(write_recipe(tmp_path, tmp_path / "base", changes), tmp_path / "run")
    with caplog.at_level("INFO"):
        api.make(run, ["train"], all_needed=True)
    assert f"the base comes in {title}" in caplog.text
    assert run.manifest().model["dequantized_from"].startswith(title)
    training = Training.read(run.training_file)
    assert training.best_dev_loss < training.first_dev_loss and training.best_step > 0
    merge(tmp_path / "base", run.adapter, tmp_path / "merged", quantized_in_training(tmp_path / "base", base == "nf4", False))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == weights.keys()
    ids = torch.tensor([open_base(dense).renderer.prompt_ids([{"role": "user", "content": "A red ball"}])])
    trained = open_base(run.recipe()).load(run.adapter).model
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        logits, ours = (model(input_ids=ids).logits for model in (trained, written))
    torch.testing.assert_close(ours, logits, rtol=0.03, atol=0.03)
    if base == "nf4":
        return
    changed = {name for name in weights if not torch.equal(merged[name], weights[name])}
    assert changed == {name for name in weights if name.endswith(("q_proj.weight", "v_proj.weight"))}
    # The adapter is PEFT's over the dense model that the base amounts to.
    save_file({name: weight.contiguous() for name, weight in weights.items()}, dense / "model.safetensors", {"format": "pt"})
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32), run.adapter)
    with torch.no_grad():
        torch.testing.assert_close(logits, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_experts_that_came_in_mxfp4_go_out_as_they_came(mixture, tmp_path):
    """Training changed queries and values; the GGUF of the merged model has the values of the published experts in MXFP4."""
    weights = quantise(mixture, tmp_path / "base", "mxfp4")
    lora = Lora(r=4, alpha=8, target_modules=("q_proj", "v_proj"), dropout=0.0)
    layers = adapted(load_model(tmp_path / "base", "fp32"), lora.target_modules)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", layers, lora, str(tmp_path / "base"))
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    open_base(mixture).renderer.tokenizer.save_pretrained(tmp_path / "merged")
    write_one_type(tmp_path / "merged", tmp_path / "made.gguf", "MXFP4_MOE", tmp_path / "half.gguf")
    tensors = {tensor.name: tensor for tensor in GgufReader(tmp_path / "made.gguf").tensors}
    for layer in range(2):
        both_EIO = weights[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
        down_EIO = weights[f"model.layers.{layer}.mlp.experts.down_proj"]
        for name, published_EIO in (("gate", both_EIO[..., ::2]), ("up", both_EIO[..., 1::2]), ("down", down_EIO)):
            tensor = tensors[f"blk.{layer}.ffn_{name}_exps.weight"]
            assert tensor.tensor_type.name == "MXFP4"
            found_EOI = torch.from_numpy(gguf.dequantize(np.asarray(tensor.data), tensor.tensor_type))
            assert torch.equal(found_EOI, published_EIO.transpose(1, 2).float())
