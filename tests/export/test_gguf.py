import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from tunesmith.errors import ExportError
from tunesmith.export.gguf import Source, describe, plan_types, quantize

FACTS = {"general.architecture": "llama", "llama.block_count": 16, "llama.attention.head_count": 8}


def _model(hidden, layers=16, output=False):
    names = [Source("token_embd.weight", (1000, hidden), Type.F16), Source("output_norm.weight", (hidden,), Type.F32)]
    names += [Source("output.weight", (1000, hidden), Type.F16)] if output else []
    for i in range(layers):
        names += [Source(f"blk.{i}.{n}.weight", (hidden, hidden), Type.F16) for n in ("attn_q", "attn_v", "ffn_down")]
        names += [Source(f"blk.{i}.attn_norm.weight", (hidden,), Type.F32)]
    return names


def test_q4_k_m_types_by_llama_cpps_rule():
    types = plan_types(_model(512), "Q4_K_M", FACTS)
    # use_more_bits of 16 layers: the first two, the last two, every third between
    more = {0, 1, 4, 7, 10, 13, 14, 15}
    assert {i for i in range(16) if types[f"blk.{i}.ffn_down.weight"] == Type.Q6_K} == more
    assert {i for i in range(16) if types[f"blk.{i}.attn_v.weight"] == Type.Q6_K} == more
    assert all(types[f"blk.{i}.attn_q.weight"] == Type.Q4_K for i in range(16))
    assert types["token_embd.weight"] == Type.Q6_K and types["output_norm.weight"] == Type.F32
    untied = plan_types(_model(512, output=True), "Q4_K_M", FACTS)
    assert untied["token_embd.weight"] == Type.Q4_K and untied["output.weight"] == Type.Q6_K


def test_rows_that_no_block_of_256_divides_fall_back():
    types = plan_types(_model(576), "Q4_K_M", FACTS)
    assert types["blk.0.attn_q.weight"] == Type.Q5_0 and types["blk.0.ffn_down.weight"] == Type.Q8_0
    assert types["token_embd.weight"] == Type.Q8_0
    assert plan_types(_model(40), "Q4_K_M", FACTS)["blk.0.attn_q.weight"] == Type.F16
    assert set(plan_types(_model(576), "Q8_0", FACTS).values()) == {Type.Q8_0, Type.F32}


def test_types_of_the_real_model_are_those_that_llama_quantize_wrote():
    """Name, shape, type before and after ``llama-quantize SmolLM2-135M-F16.gguf Q4_K_M`` (llama.cpp b10605)."""
    listed = json.loads((Path(__file__).parent / "llama_quantize_types.json").read_text())
    sources = [Source(name, tuple(shape), Type[before]) for name, shape, before, _ in listed]
    facts = {"general.architecture": "llama", "llama.block_count": 30, "llama.attention.head_count": 9}
    types = plan_types(sources, "Q4_K_M", {**facts, "llama.attention.head_count_kv": 3})
    assert types == {name: Type[after] for name, _, _, after in listed} and len(types) == 272


def test_experts_are_refused():
    with pytest.raises(ExportError, match="experts"):
        plan_types(_model(256), "Q4_K_M", {**FACTS, "llama.expert_count": 8})


def test_quantised_file_keeps_metadata_and_blocks_decode_to_the_weights(tmp_path):
    rng = np.random.default_rng(0)
    source = tmp_path / "f16.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_file_type(1)
    writer.add_token_list([b"a", b"b"])
    writer.add_chat_template("{{ messages }}")
    tensors = {
        "token_embd.weight": rng.normal(size=(70, 512)).astype(np.float16),
        "blk.0.attn_q.weight": rng.normal(size=(64, 512)).astype(np.float16),
        "blk.0.ffn_down.weight": rng.normal(size=(64, 96)).astype(np.float16),
        "blk.0.attn_norm.weight": rng.normal(size=512).astype(np.float32),
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = quantize(source, tmp_path / "q.gguf", "Q4_K_M")
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    assert reader.fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    kinds = {t.name: t.tensor_type for t in reader.tensors}
    # one layer of one: 7*1//8 = 0, so it gets more bits; 96 columns fall back to Q8_0
    assert kinds["blk.0.attn_q.weight"] == Type.Q4_K and kinds["blk.0.ffn_down.weight"] == Type.Q8_0
    tolerance = {Type.Q4_K: 0.08, Type.Q8_0: 0.006, Type.Q6_K: 0.02, Type.F32: 0.0}
    for tensor in reader.tensors:
        decoded = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensors[tensor.name].shape)
        exact = tensors[tensor.name].astype(np.float32)
        error = np.sqrt(np.mean((decoded - exact) ** 2)) / np.sqrt(np.mean(exact**2))
        assert error <= tolerance[tensor.tensor_type], (tensor.name, tensor.tensor_type, error)
    assert facts == describe(tmp_path / "q.gguf")
    bits = 8 * sum(t.n_bytes for t in reader.tensors) / sum(t.size for t in tensors.values())
    assert facts["bits_per_weight"] == pytest.approx(bits, abs=1e-3)
    assert not list(tmp_path.glob(".*"))


def test_q8_0_equals_the_gguf_packages_own_quantiser(tmp_path):
    """A second implementation as oracle: the Python one of the gguf package, byte for byte."""
    x = np.random.default_rng(1).normal(size=(33, 64)).astype(np.float16)
    writer = gguf.GGUFWriter(tmp_path / "f16.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_tensor("blk.0.attn_q.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize(tmp_path / "f16.gguf", tmp_path / "q8.gguf", "Q8_0")
    (tensor,) = gguf.GGUFReader(tmp_path / "q8.gguf").tensors
    assert np.array_equal(np.asarray(tensor.data), gguf.quantize(x.astype(np.float32), Type.Q8_0))
