"""Bytes on the disk from shapes alone, against stock models' parameters and the tensors that llama.cpp's converter writes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tiny_families import GEMMA4, K_IS_V, TINY
from tunesmith.checkpoints.gguf_write.architecture import architecture_of
from tunesmith.errors import ExportError
from tunesmith.export.facts import gguf_sources
from tunesmith.export.plan import Write
from tunesmith.export.sizes import gguf_bytes, header_bytes, metadata_of, sources_of
from tunesmith.memory.dials import Dials
from tunesmith.memory.disk import base_bytes, checkpoint_bytes, checkpoints_at_once, dense_bytes, stored_bytes, width_of
from tunesmith.memory.shape import Shape, shape_of
from tunesmith.memory.techniques import sizes

LARGE = {size.name: size.shape for size in sizes()}


@pytest.mark.parametrize("name", TINY)
def test_weights_are_those_of_the_stock_model(name):
    """Without sinks and undeclared biases, which a tiny model has too many of: 2 % of gpt-oss's."""
    config = TINY[name].config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    facts = config.to_dict()
    if name.startswith("gemma4"):  # transformers 5 writes these in another way than models are published with
        facts |= {"global_head_dim": GEMMA4["global_head_dim"]} | (K_IS_V if facts.get("attention_k_eq_v") else {})
    shape = shape_of(facts)
    assert isinstance(shape, Shape)
    weights = dict(model.named_parameters())
    assert dense_bytes(shape, 2) == pytest.approx(2 * sum(map(torch.numel, weights.values())), rel=0.02)
    try:
        architecture = architecture_of(type(model).__name__)
    except ExportError:
        return  # of which llama.cpp makes no file
    writes = [Write(key, key, tuple(p.shape), p.dtype, "dense", None, None) for key, p in weights.items()]
    sources = gguf_sources(writes, architecture, config.num_hidden_layers, False, shape.tied)
    metadata = metadata_of(shape, config.model_type)
    expected = gguf_bytes(sources, metadata, 0, "F16")
    assert gguf_bytes(sources_of(shape), metadata, 0, "F16") == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("name", "file_type", "published"),
    [("1B", "Q4_K_M", 0.808), ("8B", "Q8_0", 8.54), ("8B", "Q4_K_M", 4.92), ("27B", "Q4_K_M", 16.55), ("70B", "Q4_K_M", 42.52)],
)
def test_published_files_are_met_within_a_hundredth(name, file_type, published):
    """GB of the files of these models that people share."""
    tensors = sources_of(LARGE[name])
    header = header_bytes(len(tensors), 36 * LARGE[name].vocab)
    architecture = "gemma3" if name == "27B" else "llama"
    found = gguf_bytes(tensors, metadata_of(LARGE[name], architecture), header, file_type)
    assert found / 1e9 == pytest.approx(published, rel=0.01)


def test_what_a_training_writes_grows_with_what_it_trains():
    each = checkpoint_bytes(LARGE["8B"], Dials(r=16))
    assert each == pytest.approx(3 * 4 * 16 * LARGE["8B"].adapter_per_rank, rel=0.01), "weights and two moments"
    assert checkpoint_bytes(LARGE["8B"], Dials(r=16, optimizer="adamw_8bit")) < 0.52 * each
    assert [checkpoints_at_once(1), checkpoints_at_once(4), checkpoints_at_once(4, 3)] == [3, 6, 3]
    assert stored_bytes(LARGE["8B"]) == pytest.approx(3.6e9, rel=0.001)


@pytest.mark.parametrize(
    ("config", "width"),
    [({"dtype": "bfloat16"}, 2), ({"torch_dtype": "float32"}, 4), ({"text_config": {"dtype": "float16"}}, 2), ({}, 4)],
)
def test_a_weight_is_as_wide_as_the_configuration_says(config, width):
    assert width_of(config) == width
    whole, small = base_bytes(LARGE["8B"], config), base_bytes(LARGE["8B"], {**config, "quantization_config": {"bits": 4}})
    assert whole == dense_bytes(LARGE["8B"], width) and small < 0.4 * whole
