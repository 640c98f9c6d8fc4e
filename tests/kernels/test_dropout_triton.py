"""The mask against Philox written out, and what is done with it."""

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.kernels.triton.dropout import GROUPS, LANES, drop_seeded
from tunesmith.layers import lora
from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.dropout import SeededMask

SEED, HALF = 0x1234_5678_9ABC_DEF0, 2**15


def _philox(key, counter):
    """Philox-4x32-10 of Random123: four words of 32 bits."""
    c, k = [int(x) for x in counter], [int(x) for x in key]
    for _ in range(10):
        one, two = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(two >> 32) ^ c[1] ^ k[0], two & 0xFFFFFFFF, (one >> 32) ^ c[3] ^ k[1], one & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def _expected(rows, columns, seed, threshold):
    """Which elements stay."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    words = [[_philox(key, (group, row, 0, 0)) for group in range(-(-columns // LANES))] for row in range(rows)]
    halves = np.array(words, dtype="<u4").view("<u2").reshape(rows, -1)[:, :columns]
    return torch.from_numpy(halves.astype(np.int32)) >= threshold


def _mask(rows, columns, seed, threshold, device):
    return drop_seeded(torch.ones(rows, columns, device=device), seed, threshold).cpu().bool()


def test_philox_is_that_of_random123():
    assert _philox((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize(("rows", "columns"), [(3, 40), (2, 5), (1, LANES * GROUPS + 9)])
def test_the_mask_is_philox_by_row_and_column(rows, columns, device):
    for seed in (SEED, 1, 0):
        assert torch.equal(_mask(rows, columns, seed, HALF, device), _expected(rows, columns, seed, HALF))


def test_the_rate_and_that_rows_columns_and_seeds_are_independent(device):
    threshold = round(0.05 * 2**16)
    rate, count = threshold / 2**16, 200 * 500
    gone = [~_mask(200, 500, seed, threshold, device) for seed in (SEED, SEED + 1)]
    pairs = [
        (gone[0], gone[1]),
        (gone[0][1:], gone[0][:-1]),
        (gone[0][:, 1:], gone[0][:, :-1]),
        (gone[0][:, 8:], gone[0][:, :-8]),
    ]
    assert abs(gone[0].double().mean() - rate) < 4 * (rate * (1 - rate) / count) ** 0.5
    for one, other in pairs:
        assert abs((one & other).double().mean() - rate**2) < 4 * (rate**2 * (1 - rate**2) / one.numel()) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_strided_rows_drop_what_is_not_finite_and_may_be_added(dtype, device):
    x = torch.randn(5, 50).to(dtype).to(device)[:, :37]
    x[1], x[2] = torch.inf, torch.nan
    stays = _expected(5, 37, SEED, HALF).to(device)
    left = torch.where(stays, x, torch.zeros_like(x))
    assert torch.equal(drop_seeded(x, SEED, HALF).nan_to_num(5.0), left.nan_to_num(5.0))
    assert torch.equal(drop_seeded(x[3:], SEED, HALF, first_row=3), left[3:])
    onto = torch.randn(5, 60).to(dtype).to(device)
    total = (onto[:, 3:40].float() + left.float()).to(dtype)
    beside = onto[:, 40:].clone()
    assert drop_seeded(x, SEED, HALF, onto[:, 3:40]).data_ptr() == onto[:, 3:40].data_ptr()
    assert torch.equal(onto[:, 3:40].nan_to_num(5.0), total.nan_to_num(5.0)) and torch.equal(onto[:, 40:], beside)


def test_no_tokens_and_double_precision(device):
    assert drop_seeded(torch.ones(0, 8, device=device), SEED, HALF).shape == (0, 8)
    with pytest.raises(AssertionError):
        drop_seeded(torch.ones(1, 8, dtype=torch.float64, device=device), SEED, HALF)


@pytest.mark.parametrize("recomputed", [False, True])
def test_an_adapter_takes_its_gradients_through_the_mask_of_its_forward_pass(recomputed, monkeypatch):
    """A layer on the CPU that is given a GPU's mask, against autograd through the mask written out."""
    seeds = []
    monkeypatch.setattr(lora, "draw_mask", lambda x, p, seed: seeds.append(seed) or SeededMask(seed, round(p * 2**16)))
    torch.manual_seed(0)
    layer = lora.LoRALinear(torch.nn.Linear(24, 10, bias=False), r=3, scale=2.0, dropout=0.25)
    layer.lora_B.data.normal_()
    x = torch.randn(7, 24, requires_grad=True)
    with at_step(layer, StepContext(seed=0, step=0)) as enter:
        enter(0)
        y = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
        y.square().sum().backward()
    assert len(seeds) == 2 + recomputed and len(set(seeds)) == 1
    found = [x.grad, layer.lora_A.grad, layer.lora_B.grad]
    stays = _expected(7, 24, seeds[0], 2**14)
    A, B, x = (t.detach().clone().requires_grad_() for t in (layer.lora_A, layer.lora_B, x))
    assert layer.weight is not None
    expected = x @ layer.weight.T + 2.0 / 0.75 * ((x * stays) @ A.T) @ B.T
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for ours, true in zip(found, torch.autograd.grad(expected.square().sum(), (x, A, B)), strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-4)
