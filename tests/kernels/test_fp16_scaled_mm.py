"""Products in fp16 with rows scaled, against fp64; what plain fp16 does to the same numbers."""

import pytest
import torch

from tunesmith.kernels import fp16_scaled_mm
from tunesmith.kernels.fp16_scaled_mm import OverflowRows, scale_rows, scaled_mm, scaled_mm_back

EPS = 2.0**-11  # half a unit in the last place of fp16


def _input(rows=8, columns=40, seed=0):
    """fp32 rows whose sizes run from 1e-30 to 1e30."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.logspace(-30, 30, rows)[:, None]


def _weight(outputs=30, inputs=40):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).half()


def test_a_row_loses_nothing_but_the_rounding_to_eleven_bits():
    x = _input()
    x[:, 3] = x.abs().amax(1) * (1.37 * 2.0**-28)  # small beside the largest of its row, and still whole
    rows = scale_rows(x)
    back = rows.half_TI.double() * rows.factor_T1.double()
    assert ((back - x.double()).abs() <= EPS * x.double().abs()).all()
    assert torch.equal(torch.log2(rows.factor_T1).frac(), torch.zeros(len(x), 1))
    largest = rows.half_TI.abs().amax(1).float()
    assert (largest >= 2**14).all() and (largest <= 2**15).all()


@pytest.mark.parametrize("fill", [0.0, 2.0**-149, 2.0**-127, 2.0**-112, 3.4e38])
def test_the_ends_of_fp32(fill):
    x, weight = torch.full((2, 4), fill), torch.tensor([[1.0, 0.0, 0.0, 0.0]]).half()
    found = scaled_mm(x, weight)
    torch.testing.assert_close(found, torch.full((2, 1), fill), rtol=EPS, atol=2.0**-149)


def test_both_products_are_those_of_fp64():
    x, weight = _input(), _weight()
    dy = _input(columns=30, seed=2)
    for found, left, right in ((scaled_mm(x, weight), x, weight.T), (scaled_mm_back(dy, weight), dy, weight)):
        exact = left.double() @ right.double()
        bound = 2 * EPS * (left.double().abs() @ right.double().abs())
        assert found.dtype == torch.float32 and ((found.double() - exact).abs() <= bound).all()
    assert (x.half() @ weight.T).isfinite().all(1).tolist() != [True] * len(x)


def test_a_power_of_two_on_a_row_is_a_power_of_two_on_its_output():
    x, weight = _input(rows=5), _weight()
    powers = torch.tensor([[1.0], [2.0**20], [2.0**-20], [2.0**7], [2.0**-1]])
    assert torch.equal(scaled_mm(x * powers, weight), scaled_mm(x, weight) * powers)


@pytest.mark.parametrize("odd", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so_and_in_its_row(odd):
    x, weight = _input(), _weight()
    plain = scaled_mm(x, weight)
    x[3, 5] = odd
    found = scaled_mm(x, weight)
    others = [row for row in range(len(x)) if row != 3]
    assert not found[3].isfinite().any() and torch.equal(found[others], plain[others])


def test_rows_may_be_strided_and_the_weight_comes_in_blocks(monkeypatch):
    room, x, weight = torch.full((8, 100), 7.0), _input(), _weight()
    wide = torch.cat([weight, weight], 1)
    room[:, 9:49] = x
    out = torch.full((8, 50), 7.0)
    whole = scaled_mm(x, weight)
    found = scaled_mm(room[:, 9:49], wide[:, 40:], out=out[:, 10:40])
    assert found.data_ptr() == out[:, 10:].data_ptr()
    close = 1e-6 * whole.abs().amax(1, keepdim=True)
    assert ((found - whole).abs() <= close).all()
    assert (out[:, :10] == 7).all() and (out[:, 40:] == 7).all()
    monkeypatch.setattr(fp16_scaled_mm, "BLOCK", 7)
    assert ((scaled_mm(x, weight) - whole).abs() <= close).all()


def test_rows_that_plain_fp16_would_lose_are_counted():
    overflow, weight = OverflowRows(), _weight()
    assert overflow.total() is None  # no product yet
    with torch.inference_mode():
        scaled_mm(torch.full((3, 40), 65504.0), weight, overflow=overflow)
    assert overflow.total() == 0
    x = torch.ones(5, 40)
    x[1, 7], x[2], x[4, 0] = -7e4, 1e9, torch.inf  # infinity is not rescued
    scaled_mm(x, weight, overflow=overflow)
    scaled_mm_back(torch.full((2, 30), 1e6), weight, overflow=overflow)
    assert overflow.total() == 4


def test_other_dtypes_are_the_callers_mistake():
    with pytest.raises(AssertionError, match="float16"):
        scaled_mm(torch.ones(2, 40).half(), _weight())
    with pytest.raises(AssertionError, match="float32"):
        scaled_mm(torch.ones(2, 40), _weight().float())
