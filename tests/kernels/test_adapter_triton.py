"""The r-wide products of a group against their formulas in fp64."""

import pytest
import torch

from tunesmith.kernels.triton.adapter import adapter_gradients, add_update_, project
from tunesmith.kernels.triton.dropout import drop_seeded

DROPPED = (0x1234_5678_9ABC, 2**15, 7)
DTYPES = [(torch.float32, 1e-5), (torch.float16, 2e-3), pytest.param(torch.bfloat16, 2e-2, marks=pytest.mark.gpu)]
SIZES = [(20, 40, (4,)), (3, 33, (1, 0, 6)), (35, 70, (8, 8, 16))]  # tokens, inputs, ranks


def _drawn(*shape, dtype, device):
    """Values in rows that lie apart."""
    return torch.randn(shape[0], shape[1] + 24).to(dtype).to(device)[:, : shape[1]]


def _dropped(x, dropped):
    seed, threshold, first_row = dropped
    return drop_seeded(x, seed, threshold, first_row=first_row).double() if threshold else x.double()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dropped", [DROPPED, (0, 0, 0)])
@pytest.mark.parametrize(("tokens", "inputs", "ranks"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_input_and_narrow_product_stand_side_by_side(tokens, inputs, ranks, dtype, tolerance, dropped, device):
    x, A = _drawn(tokens, inputs, dtype=dtype, device=device), torch.randn(sum(ranks), inputs).to(dtype).to(device)
    for apart in (True, False):
        room = torch.full((tokens, inputs + len(A) + 8), torch.nan, dtype=dtype, device=device)
        both, source = room[:, : inputs + len(A)], x
        if not apart:
            source = both[:, :inputs].copy_(x)
        xA = project(source, A, both, dropped)
        assert (
            torch.equal(both[:, :inputs], x) and torch.equal(both[:, inputs:], xA) and room[:, inputs + len(A) :].isnan().all()
        )
        torch.testing.assert_close(xA.double(), _dropped(x, dropped) @ A.double().T, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("tokens", "inputs", "ranks"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_an_update_is_added_through_the_mask_and_rounded_once(tokens, inputs, ranks, dtype, tolerance, device):
    dx, dxA = (_drawn(tokens, n, dtype=dtype, device=device) for n in (inputs, sum(ranks)))
    A = torch.randn(sum(ranks), inputs).to(dtype).to(device)
    stays = _dropped(torch.ones(tokens, inputs, device=device), DROPPED)
    expected = (dx.double() + (dxA.double() @ A.double()) * stays).to(dtype)
    assert add_update_(dx, dxA, A, DROPPED) is dx
    torch.testing.assert_close(dx, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("tokens", "inputs", "ranks"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_gradients_of_all_adapters(tokens, inputs, ranks, dtype, tolerance, normed, device):
    layers = [(width, rank, scale) for width, rank, scale in zip((70, 5, 64), ranks, (2.0, 1.0, 0.5), strict=False)]
    x, dy = (_drawn(tokens, n, dtype=dtype, device=device) for n in (inputs, sum(width for width, _, _ in layers)))
    xA, dxA = (_drawn(tokens, sum(ranks) + 3, dtype=dtype, device=device) for _ in range(2))  # with columns that fill up
    weight, rstd = torch.rand(inputs).to(dtype).to(device), torch.rand(tokens, device=device) + 0.5
    seen = (x.float() * rstd[:, None] * (weight.float() + 1.0)).to(dtype) if normed else x
    dA, dB = adapter_gradients(dy, x, xA, dxA, layers, torch.float32, DROPPED, (weight, rstd, 1.0) if normed else None)
    expected = dxA[:, : sum(ranks)].double().T @ _dropped(seen.contiguous(), DROPPED)
    torch.testing.assert_close(dA.double(), expected, rtol=tolerance, atol=30 * tolerance)
    column = first = 0
    for (width, rank, scale), found in zip(layers, dB, strict=True):
        true = scale * dy[:, column : column + width].double().T @ xA[:, first : first + rank].double()
        assert found.dtype == torch.float32 and found.is_contiguous()
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-4)
        column, first = column + width, first + rank
