"""The fused MLP against the same function written plainly and differentiated by autograd, in fp64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.dropout import draw_mask
from tunesmith.layers.lora import LoRALinear, Norm
from tunesmith.layers.mlp import FusedMLP

D, F_ = 6, 10  # hidden and intermediate size
ACT = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def _mlp(activation="silu", dropout=0.0, bias=False, ranks=(2, 3, 4), offset=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    layers = []
    for r, (inputs, outputs) in zip(ranks, [(D, F_), (D, F_), (F_, D)], strict=True):
        layer = LoRALinear(nn.Linear(inputs, outputs, bias=bias, dtype=dtype), r, 1.5, dropout)
        layer.lora_A.data = layer.lora_A.data.to(torch.promote_types(dtype, torch.float32))
        layer.lora_B.data = torch.randn(outputs, r, dtype=layer.lora_A.dtype)
        layers.append(layer)
    norm = Norm(torch.randn(D, dtype=dtype), 1e-5, offset)
    return FusedMLP({"gate_proj": layers[0], "up_proj": layers[1]}, layers[2], activation, norm)


def _input(*leading, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*leading, D, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def _adapted(layer, x, kept):
    """A linear layer with its adapter, and the adapter's input after dropout."""
    left = x if kept is None else x * (kept != 0) / (1 - layer.dropout)
    return F.linear(x, layer.weight, layer.bias) + layer.scale * (left @ layer.lora_A.T) @ layer.lora_B.T


def _plain(mlp, x, kept=(None, None)):
    norm = mlp.norm
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * (norm.offset + norm.weight_I)
    gate, up = (_adapted(layer, x, kept[0]) for layer in (mlp.gate_proj, mlp.up_proj))
    return _adapted(mlp.down_proj, ACT[mlp.activation](gate) * up, kept[1])


def _adapters(mlp):
    return [p for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj) for p in (layer.lora_A, layer.lora_B)]


def _assert_same(mlp, x, found, expected):
    torch.testing.assert_close(found, expected)
    dy = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(2))
    parameters = [x, *_adapters(mlp)]
    for mine, theirs in zip(
        torch.autograd.grad(found, parameters, dy), torch.autograd.grad(expected, parameters, dy), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ranks", [(2, 3, 4), (0, 0, 0), (0, 2, 0)])
@pytest.mark.parametrize("leading", [(1,), (2, 7)])
def test_equals_autograd(activation, bias, ranks, leading):
    mlp, x = _mlp(activation, bias=bias, ranks=ranks, offset=1.0), _input(*leading)
    _assert_same(mlp, x, mlp(x), _plain(mlp, x))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gradients_by_finite_differences(activation):
    mlp, x = _mlp(activation), _input(3)
    names = [name for name, parameter in mlp.named_parameters() if parameter.requires_grad]

    def forward(x, *values):
        return torch.func.functional_call(mlp, dict(zip(names, values, strict=True)), (x,))

    assert len(names) == 6
    assert torch.autograd.gradcheck(forward, (x, *(mlp.get_parameter(name) for name in names)))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_dropout_equals_autograd_on_the_very_masks(activation):
    mlp, x = _mlp(activation, dropout=0.4).eval(), _input(11)
    with at_step(mlp, StepContext(seed=5, step=0)) as enter:
        enter(0)
        seeds = [layer.dropout_seed() for layer in (mlp.gate_proj, mlp.down_proj)]
        masks = [draw_mask(torch.empty(11, width), 0.4, seed) for width, seed in zip((D, F_), seeds, strict=True)]
        # One mask for what gate and up read together, another for what down reads.
        assert all(0 < int((mask == 0).sum()) < mask.numel() for mask in masks)
        _assert_same(mlp, x, mlp(x), _plain(mlp, x, masks))


def test_dropout_follows_the_step_and_ends_with_it():
    mlp, x = _mlp(dropout=0.4).eval(), _input(11)

    def drawn(step):
        with at_step(mlp, StepContext(seed=0, step=step)) as enter:
            enter(0)
            y = mlp(x)
            return [y, *torch.autograd.grad(y.square().sum(), [x, *_adapters(mlp)])]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    _assert_same(mlp, x, mlp(x), _plain(mlp, x))


def test_an_input_without_gradient_changes_no_other():
    mlp, x = _mlp(), _input(4)
    wanted, found = (torch.autograd.grad(mlp(y).square().sum(), _adapters(mlp)) for y in (x, x.detach()))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_activated_product_is_not_kept():
    mlp, x = _mlp(), _input(50)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = mlp(x)
    ranks = 2 + 3 + 4
    # Input of the norm, its scale, outputs of gate and up, and the narrow products.
    assert sum(kept.values()) == 50 * 8 * (D + 1 + 2 * F_ + ranks)
    assert y.requires_grad


def test_bf16_is_as_exact_as_the_usual_order():
    torch.manual_seed(3)
    mlp, x = _mlp(dtype=torch.bfloat16), _input(64, dtype=torch.bfloat16)
    exact = _mlp(dtype=torch.float64)
    exact.load_state_dict(mlp.state_dict())
    exact.norm.weight_I.copy_(mlp.norm.weight_I)
    truth = _plain(exact, x.detach().double())
    for adapter in _adapters(mlp):
        adapter.data = adapter.data.bfloat16()
    usual = _plain(mlp, x)
    error, error_usual = ((y.double() - truth).norm() / truth.norm() for y in (mlp(x), usual))
    assert error.detach() <= error_usual.detach() < 0.02


@pytest.mark.parametrize("tile", [4, 8, 16, 10])  # of 23 rows; 10 is rounded up
@pytest.mark.parametrize(("dropout", "bias"), [(0.0, True), (0.4, False)])
def test_tiles_equal_the_whole(tile, dropout, bias):
    mlp, x = _mlp("gelu_tanh", dropout=dropout, bias=bias, offset=1.0).eval(), _input(23)

    def computed(rows):
        mlp.tile = rows
        with at_step(mlp, StepContext(seed=5, step=0)) as enter:
            enter(0)
            y = mlp(x)
            return [y, *torch.autograd.grad(y.square().sum(), [x, *_adapters(mlp)])]

    for mine, theirs in zip(computed(tile), computed(0), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_tiles_keep_their_input_alone_and_the_last_rows_know_nothing_of_them():
    mlp, x = _mlp(), _input(50)
    mlp.tile, kept = 8, {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        whole = mlp(x)
    assert sum(kept.values()) == 50 * 8 * D
    torch.testing.assert_close(mlp(x[33:]), whole[33:], rtol=1e-12, atol=1e-12)
