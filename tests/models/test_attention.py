"""Packed attention under stock modules: each document equals itself alone, whatever its layers ask of their attention."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma4TextConfig, GptOssConfig

from tunesmith.kernels.attention import Span
from tunesmith.models.attention import PACKED, packed_attention
from tunesmith.models.load import attention

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SMALL |= {"vocab_size": 300, "initializer_range": 0.15, "pad_token_id": 0, "max_position_embeddings": 256}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, "sliding_window": 6}
SHARED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "sliding_window": 6}
SHARED |= {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300}
CONFIGS = {
    "softcap": Gemma2Config(**SMALL, **WINDOWED, query_pre_attn_scalar=8, attn_logit_softcapping=1.0),
    "sinks": GptOssConfig(**SMALL, **WINDOWED, num_local_experts=4, num_experts_per_tok=2),
    "shared": Gemma4TextConfig(**SMALL, **SHARED, global_head_dim=16),
}
LENGTHS = (1, 7, 30, 2)
BORDERS = (0, 1, 8, 38, 40)


def _model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            parameter.normal_(std=2.0)
    return model


def _check_each_alone(model, vocabulary):
    torch.manual_seed(0)
    documents = [torch.randint(5, vocabulary, (n,)) for n in LENGTHS]
    spans = [Span(a, b, a, a) for a, b in pairwise(BORDERS)]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    before = model.config._attn_implementation
    with torch.no_grad(), attention(model, PACKED):
        packed = model(input_ids=torch.cat(documents)[None], position_ids=positions, spans=spans, use_cache=False).logits[0]
    assert model.config._attn_implementation == before
    with torch.no_grad():
        alone = torch.cat([model(input_ids=d[None], use_cache=False).logits[0] for d in documents])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def test_packed_documents_equal_each_alone_under_stock_attention(tiny_model):
    _check_each_alone(tiny_model, 8000)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_layers_ask_of_their_attention_is_done(config):
    _check_each_alone(_model(config), 300)


def test_sinks_that_would_train_are_refused():
    q_1HTK, kv_1GTK = torch.ones(1, 2, 3, 4), torch.ones(1, 1, 3, 4)
    with pytest.raises(AssertionError, match="sinks are frozen"):
        sinks_H = torch.zeros(2, requires_grad=True)
        packed_attention(
            torch.nn.Identity(), q_1HTK, kv_1GTK, kv_1GTK, None, scaling=1.0, spans=[Span(0, 3, 0, 0)], s_aux=sinks_H
        )


@torch.no_grad()
def test_a_document_changes_nothing_of_the_next_where_the_stock_model_leaks():
    """Position ids that begin anew do not part documents in the stock model once it is given a mask or keeps a cache."""
    model = _model(CONFIGS["shared"])
    first, other, last = torch.randint(5, 300, (3, 9), generator=torch.Generator().manual_seed(1))
    ids = [torch.cat([beginning, last])[None] for beginning in (first, other)]
    positions = torch.arange(9).repeat(2)[None]
    stock = [model(input_ids=x, position_ids=positions, attention_mask=torch.ones_like(x)).logits[:, 9:] for x in ids]
    assert (stock[0] - stock[1]).abs().max() > 0.1
    spans = [Span(0, 9, 0, 0), Span(9, 18, 9, 9)]
    with attention(model, PACKED):
        packed = [model(input_ids=x, position_ids=positions, spans=spans, use_cache=False).logits[:, 9:] for x in ids]
    assert torch.equal(packed[0], packed[1])
