"""Adapters switched off: the model is its base; switched on again: it is the tuned model, to the byte."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tunesmith.kernels.attention import Span
from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention
from tunesmith.models.swap import add_lora, put_module, without_adapters
from tunesmith.recipe import Lora

SMALL = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "initializer_range": 0.1}
IDS_1T = torch.arange(3, 15)[None]


def _model(kind):
    torch.manual_seed(0)
    if kind == "experts":
        mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **mixture))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SMALL))
    if kind == "nf4":
        for name, module in list(model.model.layers.named_modules(prefix="model.layers")):
            if isinstance(module, torch.nn.Linear):
                put_module(model, name, QuantizedLinear(NF4Weight(quantize_nf4(module.weight.data), torch.float32)))
    return model.requires_grad_(False).eval()


def _logits(model):
    with torch.no_grad(), attention(model, PACKED):
        return model(input_ids=IDS_1T, spans=[Span(0, 12, 0, 0)], rows_N=torch.arange(12), use_cache=False).logits


@pytest.mark.parametrize("kind", ["lora", "fused", "dora", "nf4", "experts"])
def test_off_is_the_base_and_on_is_the_tuned_model(kind):
    model = _model(kind)
    base = _logits(copy.deepcopy(model))
    layers = add_lora(model, Lora(r=4, alpha=8, dropout=0.0, use_dora=kind == "dora"), seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.1)
        if isinstance(layer, DoRALinear):
            layer.lora_magnitude_vector.data *= 1.3
    if kind == "fused":
        fuse(model)
    tuned = _logits(model)
    assert (tuned - base).abs().max() > 0.1
    with pytest.raises(ZeroDivisionError), without_adapters(layers):
        assert torch.allclose(_logits(model), base, atol=2e-5, rtol=0.0)
        raise ZeroDivisionError
    assert torch.equal(_logits(model), tuned)
