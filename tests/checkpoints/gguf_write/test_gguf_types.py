import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from tunesmith.checkpoints.gguf_write.types import Source, plan_types
from tunesmith.errors import ExportError

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
    narrow = plan_types([s for s in _model(40) if s.name != "token_embd.weight"], "Q4_K_M", FACTS)
    assert narrow["blk.0.attn_q.weight"] == Type.F16
    assert set(plan_types(_model(576), "Q8_0", FACTS).values()) == {Type.Q8_0, Type.F32}


def test_types_of_the_real_model_are_those_that_llama_quantize_wrote():
    """Name, shape, type before and after ``llama-quantize SmolLM2-135M-F16.gguf Q4_K_M`` (llama.cpp b10605)."""
    listed = json.loads((Path(__file__).parent / "llama_quantize_types.json").read_text())
    sources = [Source(name, tuple(shape), Type[before]) for name, shape, before, _ in listed]
    facts = {"general.architecture": "llama", "llama.block_count": 30, "llama.attention.head_count": 9}
    types = plan_types(sources, "Q4_K_M", {**facts, "llama.attention.head_count_kv": 3})
    assert types == {name: Type[after] for name, _, _, after in listed} and len(types) == 272


def test_a_row_that_no_block_divides_is_refused_where_llama_cpp_refuses():
    """Q8_0 has no fallback; a K-type falls back to F16."""
    with pytest.raises(ExportError, match=r"token_embd\.weight: rows of 40 weights, Q8_0 takes multiples of 32"):
        plan_types(_model(40), "Q8_0", FACTS)


def test_a_mixtures_tensor_needs_a_layer_and_a_file_type_is_known():
    experts = {**FACTS, "llama.expert_count": 4}
    with pytest.raises(ExportError, match="must be of a layer from 0 to 15"):
        plan_types(_model(256, layers=17), "Q4_K_M", experts)
    with pytest.raises(ExportError, match="Q2_K is not known"):
        plan_types(_model(256), "Q2_K", FACTS)


def test_importance_moves_bits_between_the_first_down_projections():
    """Q4_0 gives them Q4_1 with a matrix only, IQ4_XS gives them Q5_K without one only."""
    first = "blk.1.ffn_down.weight"  # of 16 layers the first two
    for file_type, without, given in (("Q4_0", Type.Q4_0, Type.Q4_1), ("IQ4_XS", Type.Q5_K, Type.IQ4_XS)):
        assert plan_types(_model(256), file_type, FACTS)[first] == without
        assert plan_types(_model(256), file_type, FACTS, has_imatrix=True)[first] == given
        assert plan_types(_model(256), file_type, FACTS, True)["blk.2.ffn_down.weight"] == Type[file_type]
