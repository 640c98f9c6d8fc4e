import pytest
import torch

from tunesmith.kernels import rope as reference
from tunesmith.kernels.triton.rope import rope_

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# T, H, K, width of the cosines: one token, heads and halves that fill no block, partial rotary, more heads than a tile.
SHAPES = [(1, 9, 64, 64), (3, 5, 74, 74), (7, 3, 16, 6), (2, 70, 128, 128)]


def _operands(T, H, K, width, dtype, device):
    torch.manual_seed(0)
    qkv = torch.randn(T, H * K + 24).to(dtype).to(device)
    phase = torch.rand(T, width // 2) * 50
    phase = torch.cat((phase, phase), -1).to(device)
    return qkv, qkv[:, 8 : 8 + H * K].view(T, H, K), phase.cos().to(dtype), phase.sin().to(dtype)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", SHAPES)
def test_equals_the_reference_and_touches_nothing_else(sizes, dtype, inverse, device):
    qkv, x, cos, sin = _operands(*sizes, dtype, device)
    expected = qkv.cpu().clone()
    T, H, K, _ = sizes
    reference.rope_(expected[:, 8 : 8 + H * K].view(T, H, K), cos.cpu(), sin.cpu(), inverse)
    assert rope_(x, cos, sin, inverse) is x
    torch.testing.assert_close(qkv.cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(qkv[:, :8].cpu(), expected[:, :8]) and torch.equal(qkv[:, 8 + H * K :].cpu(), expected[:, 8 + H * K :])


@pytest.mark.parametrize("sizes", SHAPES)
def test_into_another_tensor_what_is_not_turned_goes_along(sizes, device):
    qkv, x, cos, sin = _operands(*sizes, torch.float32, device)
    before, out = qkv.clone(), torch.full((x.shape[0], x.shape[1] + 1, x.shape[2]), torch.nan, device=device)
    rope_(x, cos, sin, out=out[:, 1:])
    assert torch.equal(qkv, before) and out[:, 0].isnan().all()
    expected = reference.rope_(x.cpu(), cos.cpu(), sin.cpu(), out=torch.empty(x.shape))
    torch.testing.assert_close(out[:, 1:].cpu(), expected, rtol=1e-6, atol=1e-6)


def test_heads_may_come_first(device):
    """A view of (H, T, K): the stride of tokens is smaller than that of heads."""
    _, x, cos, sin = _operands(5, 3, 8, 8, torch.float32, device)
    x = x.transpose(0, 1).contiguous().transpose(0, 1)
    expected = reference.rope_(x.cpu().clone(), cos.cpu(), sin.cpu())
    torch.testing.assert_close(rope_(x, cos, sin).cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", SHAPES)
def test_bf16_on_the_device_is_one_rounding_from_the_exact_result(sizes):
    _, x, cos, sin = _operands(*sizes, torch.bfloat16, "cuda")
    exact = reference.rope_(x.double().cpu(), cos.double().cpu(), sin.double().cpu())
    torch.testing.assert_close(reference.rope_(x, cos, sin).double().cpu(), exact, rtol=2**-8 * 1.01, atol=1e-5)
