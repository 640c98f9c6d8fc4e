"""Experts as grouped products, on the CPU's kernel of them, against one expert after another."""

import copy

import pytest
import torch
from transformers import GptOssConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.layers import experts as module
from tunesmith.layers.experts import LoRAExperts, NF4Experts
from tunesmith.layers.nf4 import NF4Weight

E, D, F = 5, 24, 16


def _stock(kind):
    torch.manual_seed(0)
    if kind == "clamped":  # weights the other way round, biases, gate and up in turns
        stock = GptOssExperts(GptOssConfig(hidden_size=D, intermediate_size=F, num_local_experts=E, swiglu_limit=0.9))
    else:
        stock = Qwen3MoeExperts(Qwen3MoeConfig(hidden_size=D, moe_intermediate_size=F, num_experts=E))
    for parameter in stock.parameters():
        parameter.data.normal_(std=D**-0.5)
    return stock.requires_grad_(False)


def _experts(kind, rank, nf4, dtype):
    stock = _stock(kind).to(dtype)
    if nf4:
        stock = NF4Experts(stock, *(NF4Weight(quantize_nf4(stock.get_parameter(n).data), dtype) for n in module.PROJECTIONS))
    if not rank:
        return stock
    experts = LoRAExperts(stock, rank, 1.5, torch.Generator().manual_seed(0))
    for part in experts.adapters().values():
        part.lora_B.data.normal_(std=0.3)
    return experts


def _pass(experts, dtype):
    """Output, and gradients of the input, the routing weights and all adapters; expert 2 gets no token."""
    torch.manual_seed(1)
    x_TD, dout_TD = (torch.randn(9, D).to(dtype) for _ in range(2))
    index_TA = torch.stack([torch.tensor([0, 1, 3, 4])[torch.randperm(4)[:2]] for _ in range(9)])
    weights_TA = torch.rand(9, 2, requires_grad=True)
    leaves = [x_TD.requires_grad_(), weights_TA, *(p for p in experts.parameters() if p.requires_grad)]
    out_TD = experts(x_TD, index_TA, weights_TA)
    return [out_TD.detach(), *torch.autograd.grad(out_TD, leaves, dout_TD)]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize(("rank", "nf4"), [(0, True), (3, True), (3, False), (8, False)])  # 3 is filled up, 8 fits beside D
@pytest.mark.parametrize("kind", ["silu", "clamped"])
def test_the_result_and_its_gradients_are_those_of_one_after_another(kind, rank, nf4, dtype, near, monkeypatch):
    experts = _experts(kind, rank, nf4, dtype)
    expected = _pass(experts, dtype)
    monkeypatch.setattr(module, "fits", lambda *_: True)
    monkeypatch.setattr(module, "_runs", lambda *_: pytest.fail("one expert after another"))
    for found, wanted in zip(_pass(copy.deepcopy(experts), dtype), expected, strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=0, atol=near * float(wanted.abs().max() + 1e-6))
