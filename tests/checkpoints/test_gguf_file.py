"""GGUF files as directories: values, configuration and refusals, against llama.cpp's converter and ``gguf``."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from llama_cpp_sources import VOCABULARY
from tiny_families import SMALL, TINY, random_model
from tunesmith import hardware
from tunesmith.checkpoints import gguf as gguf_file
from tunesmith.checkpoints.gguf import convert_gguf
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.convert import convert
from tunesmith.errors import ModelError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(hardware, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_quantised_file_becomes_the_values_of_its_blocks(tiny_run, cache):
    path = tiny_run.export / "toy-Q4_K_M.gguf"
    directory = convert_gguf(path, None)
    found = load_file(directory / "model.safetensors")
    merged = load_file(tiny_run.merged / "model.safetensors")
    assert found.keys() == merged.keys()  # tied: no second head
    blocks = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in GgufReader(path).tensors}
    down = "model.layers.1.mlp.down_proj.weight"
    assert np.array_equal(found[down].numpy(), blocks["blk.1.ffn_down.weight"])
    for name, values in merged.items():  # a permutation undone wrongly would be off by 1.4
        assert (found[name].float() - values.float()).norm() < 0.15 * values.float().norm(), name
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.config.tie_word_embeddings and model.config.architectures == ["LlamaForCausalLM"]


def test_what_a_file_says_is_understood_or_refused(tiny_run, cache, monkeypatch):
    path = tiny_run.export / "toy-Q8_0.gguf"
    with pytest.raises(ModelError, match="expects 0000"):
        convert_gguf(path, "0" * 64)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_file, "COMMON_KEYS", tuple(k for k in gguf_file.COMMON_KEYS if k != "rope.freq_base"))
        with pytest.raises(ModelError, match=r"llama\.rope\.freq_base = .* is not understood"):
            convert_gguf(path, None)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_file, "GGUF", {"other": gguf_file.GGUF["llama"]})
        with pytest.raises(ModelError, match="architecture llama is not read here"):
            convert_gguf(path, None)
    assert not cache.exists() or not list((cache / "models").glob("*"))


@pytest.mark.parametrize(("factor", "context"), [(8.0, 8192), (32.0, 8192), (4.0, 2048)])
def test_scaled_rotary_frequencies_are_found_again(factor, context):
    rule = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    size = {"hidden_size": 256, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 32, "intermediate_size": 32}
    plain = LlamaConfig(**size, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    scaled = LlamaConfig(**size, rope_parameters={**rule, "original_max_position_embeddings": context})
    slow, fast = (LlamaForCausalLM(config).model.rotary_emb.inv_freq.numpy() for config in (scaled, plain))
    found = gguf_file._scaled_rotary(Path("x.gguf"), fast / slow, plain)
    assert found == {k: v for k, v in scaled.rope_parameters.items() if k != "rope_theta"}
    with pytest.raises(ModelError, match="a rule that is not known"):
        gguf_file._scaled_rotary(Path("x.gguf"), np.linspace(1, 8, 64), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "gemma3"])
def test_through_llama_cpps_converter_and_back(name, tmp_path, cache, tokenizer_dir):
    config = TINY[name].config
    if name == "gemma3":  # which layers slide, and the scale of scores, are not in the file: they are the architecture's
        config = Gemma3TextConfig(**{**SMALL, "num_hidden_layers": 6}, query_pre_attn_scalar=8, sliding_window=8)
    if name == "llama":  # scaled frequencies of which some lie between the two borders
        rule = {"rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rule |= {"original_max_position_embeddings": 512}
        config = LlamaConfig(**{**SMALL, "hidden_size": 64, "head_dim": 32}, rope_parameters=rule)
    config.vocab_size = VOCABULARY
    model = random_model(config)
    directory = tmp_path / "model"
    model.save_pretrained(directory)
    for file in tokenizer_dir.iterdir():
        shutil.copy(file, directory / file.name)
    convert(directory, tmp_path / "x.gguf")
    again = AutoModelForCausalLM.from_pretrained(convert_gguf(tmp_path / "x.gguf", None), dtype=torch.float32)
    ids_1T = torch.arange(5, 45)[None] * 7
    expected, found = model(ids_1T).logits, again(ids_1T).logits
    assert (found - expected).abs().max() < 2e-2 < 0.05 * expected.abs().max()  # weights went through 16 bits
