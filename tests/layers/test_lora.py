import pytest
import torch
from torch import nn

from tunesmith.layers.lora import LoRALinear


def _layer(dropout=0.0, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 5, bias=bias, dtype=dtype), r=3, alpha=6, dropout=dropout)
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
    layer, x = _layer(dropout=0.5).train(), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    dropped = torch.rand(7, 6) < 0.5
    monkeypatch.setattr("tunesmith.layers.lora._draw_dropped", lambda *_: dropped)
    y = layer(x)
    y.pow(2).sum().backward()
    ours = x.grad.clone(), layer.lora_A.grad.clone(), layer.lora_B.grad.clone()
    x.grad = layer.lora_A.grad = layer.lora_B.grad = None
    stock = nn.functional.linear(x, layer.weight, layer.bias)
    stock = stock + 2.0 * ((x * ~dropped / 0.5) @ layer.lora_A.T) @ layer.lora_B.T
    stock.pow(2).sum().backward()
    torch.testing.assert_close(y, stock)
    for mine, theirs in zip(ours, (x.grad, layer.lora_A.grad, layer.lora_B.grad), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_rate_and_seed():
    from tunesmith.layers.lora import _draw_dropped

    torch.manual_seed(1)
    first = _draw_dropped(torch.empty(1000, 333), 0.05)
    torch.manual_seed(1)
    assert torch.equal(first, _draw_dropped(torch.empty(1000, 333), 0.05))
    # 333,000 Bernoulli draws: five standard deviations are 0.0019
    assert abs(first.float().mean().item() - 0.05) < 0.0019
    assert abs((first[1:] & first[:-1]).float().mean().item() - 0.0025) < 0.0005


def test_fresh_adapter_changes_nothing_and_eval_has_no_dropout():
    base = nn.Linear(6, 5)
    layer, x = LoRALinear(base, r=2, alpha=4, dropout=0.9), torch.randn(3, 6)
    assert torch.equal(layer(x), base(x))
    layer.lora_B.data.normal_()
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_frozen_weights_get_no_gradient():
    layer = _layer()
    layer(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    assert layer.lora_A.grad.abs().sum() > 0 and layer.lora_B.grad.abs().sum() > 0
