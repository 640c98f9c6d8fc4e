import pytest
import torch

from tunesmith.kernels import rms_norm as reference
from tunesmith.kernels.triton import rms_norm as triton

EPS = 1e-5
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# One token, rows that do not fill a tile, short rows of which a tile holds many, and every block a power of two or not.
SHAPES = [(1, 576), (3, 37), (70, 64), (5, 2048)]


def _rows(T, D, dtype, device):
    """A view of D columns of something wider."""
    return torch.randn(T, 2 * D + 3).to(dtype).to(device)[:, D : 2 * D]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("T", "D"), SHAPES)
def test_equals_the_reference(T, D, offset, dtype, device):
    torch.manual_seed(0)
    x, residual, dy = (_rows(T, D, dtype, device) for _ in range(3))
    weight = torch.randn(D).to(dtype).to(device)
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    x_, residual_, dy_, weight_ = (t.cpu() for t in (x, residual, dy, weight))

    y, rstd = triton.rms_norm_forward(x, weight, EPS, offset)
    y_, rstd_ = reference.rms_norm_forward(x_, weight_, EPS, offset)
    assert y.dtype == dtype and rstd.dtype == torch.float32
    torch.testing.assert_close(y.cpu(), y_, **near)
    torch.testing.assert_close(rstd.cpu(), rstd_, rtol=2e-6, atol=0)

    dx = triton.rms_norm_backward(dy, x, weight, rstd, offset)
    torch.testing.assert_close(dx.cpu(), reference.rms_norm_backward(dy_, x_, weight_, rstd_, offset), **near)

    results = triton.add_rms_norm_forward(x, residual, weight, EPS, offset)
    expected = reference.add_rms_norm_forward(x_, residual_, weight_, EPS, offset)
    assert torch.equal(results[0].cpu(), expected[0])
    for result, wanted in zip(results[1:], expected[1:], strict=True):
        torch.testing.assert_close(result.cpu(), wanted, **near)


def test_heads_are_read_and_written_where_they_lie(device):
    """q of a row of q, k and v: 5 tokens of 3 heads; the gradient goes to the columns of another such row."""
    torch.manual_seed(0)
    qkv, dqkv = (torch.randn(5, 7 * 8).to(device) for _ in range(2))
    x, dy, out, dx = (t.unflatten(1, (-1, 8))[:, 1:4] for t in (qkv, dqkv, torch.zeros_like(qkv), torch.zeros_like(qkv)))
    weight = torch.randn(8, device=device)
    y, rstd = triton.rms_norm_forward(x, weight, EPS, 1.0, out)
    assert y is out and triton.rms_norm_backward(dy, x, weight, rstd, 1.0, dx) is dx
    rows = x.cpu().flatten(0, 1)
    expected, rstd_ = reference.rms_norm_forward(rows, weight.cpu(), EPS, 1.0)
    dx_ = reference.rms_norm_backward(dy.cpu().flatten(0, 1), rows, weight.cpu(), rstd_, 1.0)
    for found, wanted in ((out, expected), (dx, dx_)):
        torch.testing.assert_close(found.cpu().flatten(0, 1), wanted, rtol=2e-6, atol=2e-6)
    assert all(float(t._base.abs().sum()) == pytest.approx(float(t.abs().sum())) for t in (out, dx))  # and nowhere else


def test_no_rows_and_double_precision(device):
    weight = torch.ones(4, device=device)
    y, rstd = triton.rms_norm_forward(torch.ones(0, 4, device=device), weight, EPS)
    assert y.shape == (0, 4) and rstd.shape == (0,)
    with pytest.raises(AssertionError):
        triton.rms_norm_forward(torch.ones(1, 4, dtype=torch.float64, device=device), weight, EPS)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "D"), SHAPES)
def test_bf16_on_the_device_is_one_rounding_from_the_exact_result(T, D):
    torch.manual_seed(0)
    x, dy = (_rows(T, D, torch.bfloat16, "cuda") for _ in range(2))
    weight = torch.randn(D, device="cuda", dtype=torch.bfloat16)
    exact = x.double().cpu().requires_grad_()
    expected = reference.rms_norm(exact, weight.double().cpu(), EPS, 1.0)
    expected.backward(dy.double().cpu())
    leaf = x.detach().requires_grad_()
    y = reference.rms_norm(leaf, weight, EPS, 1.0)
    y.backward(dy)
    torch.testing.assert_close(y.double().cpu(), expected, rtol=2**-8 * 1.01, atol=1e-5)
    torch.testing.assert_close(leaf.grad.double().cpu(), exact.grad, rtol=2**-8 * 1.01, atol=1e-4)
