import pytest
import torch
from torch import nn

from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.dropout import draw_mask
from tunesmith.layers.half import HalfLinear, HalfQuantizedLinear
from tunesmith.layers.lora import LoRAGroup, LoRALinear, Norm
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.layers.quantized import QuantizedLinear

STEP = StepContext(seed=3, step=0)


def _layer(dropout=0.0, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 5, bias=bias, dtype=dtype), r=3, scale=2.0, dropout=dropout)
    if dtype == torch.float64:
        layer.lora_A.data = layer.lora_A.data.double()
    layer.lora_B.data = torch.randn(5, 3, dtype=layer.lora_A.dtype)
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_by_finite_differences(bias):
    layer, x = _layer(bias=bias), torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)

    def forward(x, A, B):
        return torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, (x,))

    assert torch.autograd.gradcheck(forward, (x, layer.lora_A, layer.lora_B))


def test_dropout_gradient_equals_autograd_on_the_same_mask(monkeypatch):
    layer, x = _layer(dropout=0.5), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    kept = torch.rand(7, 6) < 0.5
    monkeypatch.setattr("tunesmith.layers.lora.draw_mask", lambda *_: -kept.to(torch.int64))
    with at_step(layer, STEP) as enter:
        enter(0)
        y = layer(x)
    y.pow(2).sum().backward()
    ours = x.grad.clone(), layer.lora_A.grad.clone(), layer.lora_B.grad.clone()
    x.grad = layer.lora_A.grad = layer.lora_B.grad = None
    stock = nn.functional.linear(x, layer.weight, layer.bias)
    stock = stock + 2.0 * ((x * kept / 0.5) @ layer.lora_A.T) @ layer.lora_B.T
    stock.pow(2).sum().backward()
    torch.testing.assert_close(y, stock)
    for mine, theirs in zip(ours, (x.grad, layer.lora_A.grad, layer.lora_B.grad), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_fresh_adapter_changes_nothing_and_dropout_is_of_a_step_alone():
    base = nn.Linear(6, 5)
    layer, x = LoRALinear(base, r=2, scale=2.0, dropout=0.9).eval(), torch.randn(3, 6)
    torch.testing.assert_close(layer(x), base(x), rtol=0, atol=1e-6)  # columns of zeros change the order of additions
    layer.lora_B.data.normal_()
    plain = layer(x)
    with at_step(layer, STEP) as enter:
        drawn = []
        for pack in (0, 1, 0):
            enter(pack)
            drawn.append(layer(x))
    assert not torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert torch.equal(layer(x), plain)
    with pytest.raises(AssertionError, match="outside of a step"):
        layer.train()(x)


def test_frozen_weights_get_no_gradient():
    layer = _layer()
    layer(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    assert layer.lora_A.grad.abs().sum() > 0 and layer.lora_B.grad.abs().sum() > 0


def _plain(x, layers, norm):
    """The same by autograd."""
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * (norm.offset + norm.weight_I)
    return [nn.functional.linear(x, a.weight, a.bias) + a.scale * (x @ a.lora_A.T) @ a.lora_B.T for a in layers]


@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
def test_a_group_is_its_layers_and_the_norm_before_them(offset):
    torch.manual_seed(0)
    widths, ranks = (5, 3, 4), (3, 0, 2)
    bases = [nn.Linear(6, width, bias=width != 4, dtype=torch.float64) for width in widths]
    layers = [LoRALinear(base, r, scale=1.5, dropout=0.0).double() for base, r in zip(bases, ranks, strict=True)]
    for layer in layers:
        layer.lora_B.data.normal_()
    norm = None if offset is None else Norm(torch.randn(6, dtype=torch.float64), 1e-6, offset)
    expected = torch.cat(_plain(x := torch.randn(7, 6, dtype=torch.float64), layers, norm), -1)
    group = LoRAGroup(layers)
    torch.testing.assert_close(group(x, norm), expected)
    assert all(torch.equal(layer.weight, base.weight) for layer, base in zip(layers, bases, strict=True))
    parameters = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
    assert torch.autograd.gradcheck(lambda x, *_: group(x, norm), (x.requires_grad_(), *parameters))
    alone = torch.autograd.grad(group(x.detach(), norm).square().sum(), parameters)  # x needs no gradient: another path
    both = torch.autograd.grad(group(x, norm).square().sum(), parameters)
    assert all(torch.allclose(a, b) for a, b in zip(alone, both, strict=True))


def test_a_small_update_survives_bf16():
    # Rounded by itself and then added, an update of a thousandth of the output mostly vanishes.
    torch.manual_seed(0)
    base = nn.Linear(256, 64, bias=False, dtype=torch.bfloat16)
    layer, x = LoRALinear(base, r=4, scale=1.0, dropout=0.0), torch.randn(4096, 256).bfloat16()
    layer.lora_B.data.normal_(std=2e-4)
    exact = x.double() @ base.weight.double().T
    update = layer.scale * x.double() @ layer.lora_A.double().T @ layer.lora_B.double().T
    kept = ((layer(x).double() - exact) * update).sum() / update.square().sum()
    with torch.no_grad():
        usual = base(x) + (x @ layer.lora_A.bfloat16().T) @ layer.lora_B.bfloat16().T
    lost = ((usual.double() - exact) * update).sum() / update.square().sum()
    assert abs(kept - 1) < 0.1 and abs(kept - 1) < abs(lost - 1)


@pytest.mark.parametrize("r", [0, 3])
def test_quantised_base_equals_its_dense_values(r):
    torch.manual_seed(0)
    weights = [torch.randn(width, 64) for width in (5, 9)]
    quantised = [QuantizedLinear(NF4Weight(quantize_nf4(weight), torch.float32)) for weight in weights]
    layers, twins = [], []
    for base in quantised:
        dense = nn.Linear(64, base.out_features, bias=False)
        dense.weight.data = base.weight.dense(torch.float32).clone()
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        layers.append(LoRALinear(base, r, 2.0, 0.0, generators[0]))
        twins.append(LoRALinear(dense, r, 2.0, 0.0, generators[1]))
        layers[-1].lora_B.data.normal_()
        twins[-1].lora_B.data.copy_(layers[-1].lora_B)
    x = torch.randn(7, 64, requires_grad=True)
    for found in zip(*([g(x), *torch.autograd.grad(g(x).square().sum(), [x, *(a.lora_A for a in g.layers if r)])]
                       for g in (LoRAGroup(layers), LoRAGroup(twins))), strict=True):  # fmt: skip
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6 * float(found[1].detach().abs().max()))


def _half_base(kind, inputs, outputs):
    """A frozen layer in fp16, and the very weight that it multiplies with, in fp64."""
    base = nn.Linear(inputs, outputs)
    if kind == "nf4":
        base = HalfQuantizedLinear(QuantizedLinear(NF4Weight(quantize_nf4(base.weight.data), torch.float32), base.bias))
        return base, base.weight.dense(torch.float16).double()
    base = HalfLinear(base.half())
    return base, base.weight.double()


def _error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", ["dense", "nf4"])
def test_a_frozen_fp16_layer_is_the_layer_for_inputs_of_any_size(kind):
    torch.manual_seed(0)
    base, weight = _half_base(kind, 64, 9)
    x = (torch.randn(2, 5, 64) * torch.logspace(-9, 9, 5)[:, None]).requires_grad_()
    dy = torch.randn(2, 5, 9) * torch.logspace(9, -9, 5)[:, None]
    y = base(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert y.dtype == dx.dtype == torch.float32 and base.bias.dtype == torch.float32
    exact, exact_dx = nn.functional.linear(x.detach().double(), weight, base.bias.double()), dy.double() @ weight
    for row in range(5):
        assert _error(y[:, row].detach(), exact[:, row]) < 1e-3 and _error(dx[:, row], exact_dx[:, row]) < 1e-3


@pytest.mark.parametrize("kind", ["dense", "nf4"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("x_grad", [True, False])
def test_a_group_over_fp16_bases_equals_autograd(kind, dropout, x_grad):
    torch.manual_seed(0)
    bases = [_half_base(kind, 64, width) for width in (5, 3, 4)]
    layers = [LoRALinear(base, r, 1.5, dropout) for (base, _), r in zip(bases, (3, 0, 2), strict=True)]
    for layer in layers:
        layer.lora_B.data.normal_(std=1e-6)  # fresh: 6e-8 is all that fp16 can tell apart here
    norm = Norm(torch.randn(64) * 1e6, 1e-6, 1.0)
    x = torch.randn(7, 64).requires_grad_(x_grad)
    group = LoRAGroup(layers)
    with at_step(nn.ModuleList(layers), STEP) as enter:
        enter(0)
        kept = draw_mask(x, dropout, layers[0].dropout_seed()) if dropout else torch.ones(7, 64)
        y = group(x, norm)
    mask = kept == 0
    dy = torch.randn(7, 12)
    ours = [x, *(p for layer in layers if layer.lora_A.numel() for p in (layer.lora_A, layer.lora_B))][not x_grad :]
    found = torch.autograd.grad(y, ours, dy)
    exact = [p.detach().double().requires_grad_() for p in ours]
    inner = exact[0] if x_grad else x.double()
    normed = inner * torch.rsqrt(inner.square().mean(-1, keepdim=True) + norm.eps) * (1.0 + norm.weight_I.double())
    left, adapters, outs = normed * ~mask / (1 - dropout), iter(exact[x_grad:]), []
    for layer, (base, weight) in zip(layers, bases, strict=True):
        out = nn.functional.linear(normed, weight, base.bias.double())
        outs.append(out + 1.5 * (left @ next(adapters).T) @ next(adapters).T if layer.lora_A.numel() else out)
    expected = torch.cat(outs, 1)
    assert _error(y.detach(), expected.detach()) < 1e-3
    for mine, theirs in zip(found, torch.autograd.grad(expected, exact, dy.double()), strict=True):
        assert _error(mine, theirs) < 1e-3
    # The update itself, a hundred thousand times smaller than the output, is exact.
    with torch.no_grad():
        for layer in layers:
            layer.dropout = 0.0
        whole = layers[0].group(x, norm)
        for layer in layers:
            layer.lora_B.data.mul_(3e4)
        grown = layers[0].group(x, norm)
        update = torch.cat([1.5 * normed @ a.lora_A.double().T @ a.lora_B.double().T for a in layers], 1) * (1 - 1 / 3e4)
        assert _error(grown - whole, update.detach()) < 1e-4


def test_an_fp16_input_meets_an_fp16_weight_unscaled():
    base, x = nn.Linear(6, 5).half(), torch.randn(3, 6).half()
    expected = base(x)
    torch.testing.assert_close(LoRALinear(base, 2, 1.0, 0.0)(x), expected)


@pytest.mark.parametrize("ranks", [(3, 2), (0, 0), (0, 4)])
def test_a_few_rows_are_answered_without_a_dense_weight(ranks, monkeypatch):
    """The way of a GPU, taken on the CPU: the same outputs, and no weight is dequantised but inside the product."""
    torch.manual_seed(0)
    layers = []
    for r, outputs, biased in zip(ranks, (70, 6), (True, False), strict=True):
        bias = nn.Parameter(torch.randn(outputs)) if biased else None
        base = QuantizedLinear(NF4Weight(quantize_nf4(torch.randn(outputs, 64)), torch.float32), bias)
        layers.append(LoRALinear(base, r, 2.0, 0.0).eval())
        layers[-1].lora_B.data.normal_()
    group, norm, x = LoRAGroup(layers), Norm(torch.randn(64), 1e-5, 1.0), torch.randn(5, 64)
    with torch.no_grad():
        assert not group.answers(x)
        expected = group(x, norm)
        monkeypatch.setattr(LoRAGroup, "answers", lambda *_: True)
        monkeypatch.setattr(NF4Weight, "dense", lambda *_: pytest.fail("a dense weight"))
        torch.testing.assert_close(group(x, norm), expected, rtol=1e-5, atol=1e-5)
