"""Quantised mixtures of experts: which type each tensor gets, its blocks, and what llama.cpp computes of the file.

A file is compared with its twin, the same values written out in fp32, so what is seen is how llama.cpp computes with blocks and
not what the rounding to them costs. That the fp32 file is the model that transformers computes, the matrix of families holds.
Rows of 32 or 64 weights: the least that a block takes.
"""

import functools

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from llama_cpp_sources import convert_here
from tiny_families import TINY, VOCABULARY, documents, random_model
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import ggml, quantize
from tunesmith.checkpoints.gguf_write.types import Source, plan_types
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.errors import ExportError
from tunesmith.parity.figures import distances, figures

MIXTURES = {
    "qwen3_moe": {"moe_intermediate_size": 32},
    "gpt_oss": {"intermediate_size": 64},
    "gemma4-26b": {"moe_intermediate_size": 32, "intermediate_size": 64},
}
FACTS = {"general.architecture": "llama", "llama.block_count": 2, "llama.expert_count": 4, "llama.attention.head_count": 8}


def _no_text(self):
    self.gguf_writer.add_tokenizer_model("none")
    self.gguf_writer.add_vocab_size(VOCABULARY)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """F16 and fp32 files of a mixture."""

    @functools.cache
    def of(name):
        folder, config = tmp_path_factory.mktemp(name), TINY[name].config
        made = []
        for kind in ("MOSTLY_F16", "ALL_F32"):
            random_model(type(config)(**config.to_dict() | MIXTURES[name])).save_pretrained(folder / kind)
            made.append(convert_here(folder / kind, kind, _no_text))
        return made

    return of


def _logits(path):
    with LlamaModel(path, 128) as model:
        return np.concatenate([model.logits(ids) for ids, _ in documents()])


def _values(tensor):
    return gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(("kind", "experts", "others"), [("Q8_0", "Q8_0", "Q8_0"), ("MXFP4_MOE", "MXFP4", "Q8_0")])
def test_llama_cpp_computes_with_the_blocks_of_experts(files, tmp_path, name, kind, experts, others):
    half, wide = files(name)
    described = quantize(half, tmp_path / "q.gguf", kind)
    tensors = {tensor.name: tensor for tensor in GgufReader(tmp_path / "q.gguf").tensors}
    stacks = [tensor for tensor in tensors.values() if tensor.name.endswith("_exps.weight")]
    assert stacks and {tensor.tensor_type.name for tensor in stacks} == {experts}
    assert set(described.types) == {experts, others, "F32"}
    twin = tmp_path / "twin.gguf"
    raw = bytearray(wide.read_bytes())
    for tensor in GgufReader(wide).tensors:
        values = _values(tensors[tensor.name]).astype(np.float32).tobytes()
        assert len(values) == tensor.n_bytes
        raw[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = values
    twin.write_bytes(raw)
    same, given = _logits(twin), _logits(tmp_path / "q.gguf")
    measured = figures([distances(same, _logits(wide), given)])
    # llama.cpp rounds the inputs of products to 8 bits, which sends some tokens to other experts; weights in 4 bits cost more.
    assert measured.kl_mean < 0.005 * TINY[name].noise / 2e-6
    assert kind != "MXFP4_MOE" or measured.kl_mean < 0.25 * measured.kl_from_base


def test_mxfp4_blocks_are_those_of_a_second_implementation():
    x = np.random.default_rng(1).normal(size=(64, 96)).astype(np.float32)
    assert np.array_equal(ggml().quantize(x, Type.MXFP4, None), gguf.quantize(x, Type.MXFP4).reshape(-1))


def test_values_that_were_mxfp4_come_through_as_they_were():
    """What gpt-oss ships, merged in 16 bits with no update on it, has the same values in the file again."""
    rng = np.random.default_rng(2)
    blocks = np.concatenate([rng.integers(105, 138, (512, 1)), rng.integers(0, 256, (512, 16))], axis=1).astype(np.uint8)
    blocks[:8, 1:] = rng.integers(0, 2, (8, 16)) * 17  # nothing above the smallest value
    values = gguf.dequantize(blocks, Type.MXFP4)
    assert np.array_equal(values.astype(np.float16).astype(np.float32), values)
    again = ggml().quantize(values, Type.MXFP4, None).reshape(-1, 17)
    assert np.array_equal(gguf.dequantize(again, Type.MXFP4), values)


def test_the_type_of_mixtures_is_for_mixtures_and_rows_of_32():
    def planned(kind, shape, facts=FACTS, name="blk.0.ffn_down_exps.weight"):
        return plan_types([Source(name, shape, Type.F16)], kind, facts)[name]

    assert planned("MXFP4_MOE", (4, 64, 96)) == Type.MXFP4
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_k.weight"):
        assert planned("MXFP4_MOE", (64, 96), name=name) == Type.Q8_0
    with pytest.raises(ExportError, match="this model has none"):
        planned("MXFP4_MOE", (64, 96), {**FACTS, "llama.expert_count": 0}, "blk.0.ffn_down.weight")
    for kind, found in (("MXFP4_MOE", "MXFP4"), ("Q8_0", "Q8_0")):
        with pytest.raises(ExportError, match=f"rows of 80 weights, {found} takes multiples of 32"):
            planned(kind, (4, 64, 80))
    assert planned("Q6_K", (4, 64, 80)) == Type.F16
