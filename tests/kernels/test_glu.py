import pytest
import torch
from torch.nn import functional as F

from tunesmith.kernels.glu import ACTIVATIONS, BLOCK, glu_backward, glu_forward

STOCK = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def backward(dh, gate, up, activation):
    """h, dgate, dup, of copies."""
    h, both = glu_backward(dh.clone(), gate, up, activation)
    return h, *both.chunk(2, dim=1)


def oracle(gate, up, dh, activation):
    """h, dgate, dup by autograd in fp64."""
    gate, up = (t.double().clone().requires_grad_() for t in (gate, up))
    h = STOCK[activation](gate) * up
    h.backward(dh.double())
    return h.detach(), gate.grad, up.grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
@pytest.mark.parametrize("shape", [(1, 37), (3, 576), (2 * BLOCK // 4096 + 1, 4096)])
def test_equals_autograd(activation, dtype, tolerance, shape):
    torch.manual_seed(0)
    gate, up, dh = (torch.randn(shape, dtype=dtype) for _ in range(3))
    expected = oracle(gate, up, dh, activation)
    h = glu_forward(gate, up, activation)
    for result, exact in zip((h, *backward(dh, gate, up, activation)), (expected[0], *expected), strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_two_roundings_from_the_exact_result(activation, dtype):
    torch.manual_seed(0)
    gate, up, dh = (torch.randn(9, 64).to(dtype) for _ in range(3))
    expected = oracle(gate, up, dh, activation)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(glu_forward(gate, up, activation).double(), expected[0], rtol=1.01 * eps, atol=1e-6)
    for result, exact in zip(backward(dh, gate, up, activation), expected, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, rtol=1.01 * eps, atol=eps / 50)


def test_strided_rows_are_read_where_they_are_and_h_takes_the_place_of_its_gradient():
    both, dh = torch.randn(5, 3 * 37), torch.randn(5, 40)
    before, (gate, up) = both.clone(), (both[:, :37], both[:, 37:74])
    out = torch.zeros(5, 40)
    # The exponential of a vector and that of a number alone may differ in the last bit.
    torch.testing.assert_close(glu_forward(gate, up, "silu", out[:, :37]), glu_forward(gate.clone(), up.clone(), "silu"))
    expected = backward(dh[:, :37], gate.clone(), up.clone(), "silu")
    rest = dh[:, 37:].clone()
    h, d_2F = glu_backward(dh[:, :37], gate, up, "silu")
    for found, alone in zip((h, *d_2F.chunk(2, dim=1)), expected, strict=True):
        torch.testing.assert_close(found, alone)
    assert h.data_ptr() == dh.data_ptr() and torch.equal(dh[:, 37:], rest)
    assert torch.equal(both, before) and not out[:, 37:].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_gates_stay_finite(activation):
    gate = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4]])
    up, dh = torch.ones_like(gate), torch.ones_like(gate)
    h, dgate, dup = backward(dh, gate, up, activation)
    torch.testing.assert_close(h, torch.tensor([[0.0, 0.0, 0.0, 90.0, 1e4]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(dgate, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]), rtol=0, atol=1e-6)
    assert torch.equal(dup, h)


def test_unknown_activation_is_refused():
    for call in (lambda x: glu_forward(x, x, "relu"), lambda x: glu_backward(x, x, x, "relu")):
        with pytest.raises(AssertionError, match="relu"):
            call(torch.ones(1, 1))
