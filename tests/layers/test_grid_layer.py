"""A layer that computes with the weight of the file it trains."""

import copy

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import nn

from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.kernels.blocks import Blocks, dequantize_blocks
from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.grid import GridBase, GridLinear
from tunesmith.layers.lora import LoRALinear, Norm, join


def _layers(dropout=0.0, kind="Q4_0"):
    """The layer, and plain LoRA on the weight that it rounds to."""
    torch.manual_seed(0)
    base = nn.Linear(64, 24)
    raw = torch.from_numpy(ggml().quantize(base.weight.detach().numpy(), Type[kind], None)).view(24, -1)
    layer = GridLinear(GridBase(base, Blocks(raw, kind, (24, 64))), 4, 2.0, dropout)
    nn.init.normal_(layer.lora_B, std=0.1)
    return base, layer


def test_forward_is_the_rounded_weight_and_the_gradients_are_those_of_the_smooth_part():
    base, layer = _layers()
    x = torch.randn(2, 5, 64, requires_grad=True)
    y = layer(x)
    rounded_OI = layer.rounded_OI(torch.float32)
    assert torch.equal(y, nn.functional.linear(x, rounded_OI, base.bias))
    assert torch.equal(layer.delta_OI(), rounded_OI - base.weight)
    dy = torch.randn_like(y)
    y.backward(dy)
    # Straight through: autograd of x (W + scale B A)^T at the same point, the rounding an additive constant.
    A, B = layer.lora_A.detach().requires_grad_(), layer.lora_B.detach().requires_grad_()
    x2 = x.detach().requires_grad_()
    constant = rounded_OI - (base.weight + 2.0 * B @ A).detach()
    nn.functional.linear(x2, base.weight.detach() + 2.0 * B @ A + constant).backward(dy)
    for ours, true in ((x.grad, x2.grad), (layer.lora_A.grad, A.grad), (layer.lora_B.grad, B.grad)):
        torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-5)


def test_under_dropout_the_adapters_gradients_are_those_of_lora():
    _, layer = _layers(0.3)
    plain = LoRALinear(nn.Linear(64, 24), 4, 2.0, 0.3)
    plain.load_state_dict(layer.state_dict())
    x, dy = torch.randn(9, 64), torch.randn(9, 24)
    for each in (layer, plain):
        with at_step(each, StepContext(seed=1, step=0)) as enter:
            enter(0)
            each(x).backward(dy)
    torch.testing.assert_close(layer.lora_A.grad, plain.lora_A.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.lora_B.grad, plain.lora_B.grad, rtol=1e-4, atol=1e-5)


def test_the_weight_is_rounded_once_a_step(monkeypatch):
    _, layer = _layers()
    made = []
    monkeypatch.setattr(layer, "round_into", lambda out, make=layer.round_into: made.append(out.dtype) or make(out))
    with at_step(layer, StepContext(seed=1, step=0)) as enter:
        for pack in range(3):
            enter(pack)
            layer(torch.randn(3, 64)).sum().backward()
    assert made == [torch.float32]
    for _ in range(2):  # outside a step it may have changed
        layer(torch.ones(1, 64))
    assert len(made) == 3


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_of_one_input_are_one_product_and_one_without_an_adapter_has_the_files_values(dropout):
    (base, first), (_, second) = _layers(dropout), _layers(dropout, "Q4_1")
    third = LoRALinear(GridBase(base, first.like).as_in_file(), 0, 1.0, dropout)
    norm, x = Norm(torch.rand(64), 1e-5, 1.0), torch.randn(9, 64, requires_grad=True)
    alone, group = copy.deepcopy([first, second, third]), join([first, second, third])
    module, dy = nn.ModuleList([first, second, third]), torch.randn(9, 72)
    with at_step(module, StepContext(seed=1, step=0)) as enter:
        enter(0)
        y = group(x, norm)
        y.backward(dy)
    assert torch.equal(group.rounded_MI(torch.float32)[48:], dequantize_blocks(first.like, torch.float32))
    x2 = x.detach().requires_grad_()
    normed = x2 * torch.rsqrt(x2.square().mean(1, keepdim=True) + norm.eps) * (norm.weight_I + norm.offset)
    parts = []
    with at_step(nn.ModuleList(alone), StepContext(seed=1, step=0)) as enter:
        enter(0)
        for layer in alone:
            layer.index = 0  # the mask of the common input
            parts.append(layer(normed))
        torch.cat(parts, 1).backward(dy)
    torch.testing.assert_close(y, torch.cat(parts, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip((first, second), alone[:2], strict=True):
        torch.testing.assert_close(ours.lora_A.grad, theirs.lora_A.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.lora_B.grad, theirs.lora_B.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1"])
def test_other_types(kind):
    base, layer = _layers(kind=kind)
    layer.lora_B.data.zero_()
    error = (layer.rounded_OI(torch.float32) - base.weight).abs().max() / base.weight.abs().max()
    assert 0 < error < 0.06
