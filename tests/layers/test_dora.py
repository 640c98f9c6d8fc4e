import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from tunesmith.layers import dora
from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.dora import DoRALinear, dora_weight_OI, row_norm_O


def _layer(bias=True, dropout=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(7, 5, bias=bias, dtype=dtype), r=3, scale=1.5, dropout=dropout)
    generator = torch.Generator().manual_seed(1)
    layer.lora_B.data.normal_(generator=generator)
    layer.lora_magnitude_vector.data.mul_(1.3).add_(0.1)
    return layer


def _oracle(layer, dropout):
    """PEFT's layer with the same numbers."""
    base = nn.Linear(7, 5, bias=layer.bias is not None)
    base.weight.data.copy_(layer.weight)
    if layer.bias is not None:
        base.bias.data.copy_(layer.bias)
    config = peft.LoraConfig(r=3, lora_alpha=4.5, lora_dropout=dropout, use_dora=True)
    oracle = PeftLinear(base, "default", r=3, lora_alpha=4.5, config=config)
    oracle.lora_A["default"].weight.data.copy_(layer.lora_A)
    oracle.lora_B["default"].weight.data.copy_(layer.lora_B)
    oracle.lora_magnitude_vector["default"].weight.data.copy_(layer.lora_magnitude_vector)
    return oracle


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_every_gradient_equal_peft(monkeypatch, tokens, bias, dropout):
    layer = _layer(bias, dropout)
    oracle = _oracle(layer, dropout).train()
    mask = torch.rand(tokens, 7, generator=torch.Generator().manual_seed(3)) < dropout
    monkeypatch.setattr(dora, "draw_mask", lambda *_: -(~mask).to(torch.int32))
    if dropout:
        oracle.lora_dropout["default"].forward = lambda x: torch.where(mask, 0.0, x) / (1.0 - dropout)
    x = torch.randn(1, tokens, 7, generator=torch.Generator().manual_seed(4))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    dy = torch.randn(1, tokens, 5, generator=torch.Generator().manual_seed(5))
    with at_step(layer, StepContext(seed=0, step=0)) as enter:
        enter(0)
        y, expected = layer(mine), oracle(theirs)
    y.backward(dy)
    expected.backward(dy)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(mine.grad, theirs.grad, **close)
    torch.testing.assert_close(layer.lora_A.grad, oracle.lora_A["default"].weight.grad, **close)
    torch.testing.assert_close(layer.lora_B.grad, oracle.lora_B["default"].weight.grad, **close)
    magnitude = oracle.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(layer.lora_magnitude_vector.grad, magnitude.grad, **close)
    assert layer.weight.grad is None and (layer.bias is None or layer.bias.grad is None)


def test_gradients_in_fp64_equal_autograd_with_the_length_held():
    layer = _layer(dtype=torch.float64)
    for parameter in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        parameter.data = parameter.data.double()
    x = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    parameters = [x, layer.lora_A, layer.lora_B, layer.lora_magnitude_vector]
    y = layer(x)
    found = torch.autograd.grad(y.pow(2).sum(), parameters)
    weight_OI = layer.weight + layer.scale * layer.lora_B @ layer.lora_A
    length_O = weight_OI.norm(dim=1).detach()
    stock = nn.functional.linear(x, (layer.lora_magnitude_vector / length_O)[:, None] * weight_OI, layer.bias)
    torch.testing.assert_close(y, stock)
    for mine, theirs in zip(found, torch.autograd.grad(stock.pow(2).sum(), parameters), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_fresh_layer_computes_the_base_and_its_magnitude_is_pefts():
    base = nn.Linear(7, 5)
    layer, x = DoRALinear(base, r=2, scale=2.0, dropout=0.9).eval(), torch.randn(3, 7)
    torch.testing.assert_close(layer(x), base(x), rtol=1e-6, atol=1e-6)
    oracle = PeftLinear(base, "default", r=2, lora_alpha=4, config=peft.LoraConfig(r=2, lora_alpha=4, use_dora=True))
    torch.testing.assert_close(layer.lora_magnitude_vector, oracle.lora_magnitude_vector["default"].weight)
    layer.lora_B.data.normal_()
    plain = layer(x)
    with at_step(layer, StepContext(seed=0, step=0)) as enter:
        enter(0)
        assert not torch.equal(layer(x), plain)
    assert torch.equal(layer(x), plain)


def test_merged_weight_gives_the_same_outputs_and_equals_pefts_merge():
    layer, x = _layer(), torch.randn(3, 7)
    merged = layer.weight + layer.delta_OI()
    torch.testing.assert_close(nn.functional.linear(x, merged, layer.bias), layer(x), rtol=1e-6, atol=1e-6)
    oracle = _oracle(layer, 0.0)
    oracle.merge(safe_merge=True)
    torch.testing.assert_close(merged, oracle.base_layer.weight, rtol=1e-6, atol=1e-6)


def test_lengths_do_not_depend_on_the_blocks_of_rows(monkeypatch):
    weight, A, B = torch.randn(11, 6), torch.randn(2, 6), torch.randn(11, 2)
    whole = row_norm_O(weight, A, B, 0.5)
    for rows in (1, 4, 11):
        monkeypatch.setattr(dora, "ROWS", rows)
        torch.testing.assert_close(row_norm_O(weight, A, B, 0.5), whole)
    torch.testing.assert_close(dora_weight_OI(weight, A, B, whole, 0.5), weight + 0.5 * B @ A)


def test_the_gain_itself_is_not_rounded_to_bf16():
    """1.006 would be 1.0078 in bf16."""
    base = nn.Linear(256, 64, bias=False, dtype=torch.bfloat16)
    layer, x = DoRALinear(base, r=2, scale=1.0, dropout=0.0), torch.randn(50, 256, dtype=torch.bfloat16)
    with torch.no_grad():
        before = layer(x).float()
        layer.lora_magnitude_vector.mul_(1.006)
        slope = (layer(x).float() * before).sum() / before.pow(2).sum()
    assert float(slope) == pytest.approx(1.006, abs=8e-4)
