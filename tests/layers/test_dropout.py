import pytest
import torch

from tunesmith.layers.dropout import draw_mask, drop


def test_rate_and_seed():
    first = draw_mask(torch.empty(1000, 333), 0.05, seed=1)
    assert torch.equal(first, draw_mask(torch.empty(1000, 333), 0.05, seed=1))
    assert not torch.equal(first, draw_mask(torch.empty(1000, 333), 0.05, seed=2))
    gone = first == 0
    # 333,000 Bernoulli draws: five standard deviations are 0.0019
    assert abs(gone.float().mean().item() - 0.05) < 0.0019
    assert abs((gone[1:] & gone[:-1]).float().mean().item() - 0.0025) < 0.0005


@pytest.mark.parametrize("probability", [0.0004, 0.0511, 0.3, 0.99])
def test_rates_between_multiples_of_a_256th(probability):
    gone = sum(int((draw_mask(torch.empty(4000, 100), probability, seed) == 0).sum()) for seed in range(5))
    draws = 4000 * 100 * 5
    assert abs(gone / draws - probability) < 6 * (probability * (1 - probability) / draws) ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_is_dropped_is_zero_whatever_it_was_and_the_rest_untouched(dtype):
    x = torch.randn(7, 40).to(dtype)[:, :33]  # rows with a gap between them
    x[0], x[1], x[2] = torch.inf, torch.nan, -0.0
    mask = draw_mask(x, 0.5, seed=3)
    assert mask.shape == x.shape and {int(v) for v in mask.unique()} == {-1, 0}
    expected = torch.where(mask == 0, 0.0, x)
    found = drop(x, mask)
    assert found.dtype == dtype and torch.equal(found.nan_to_num(5.0), expected.nan_to_num(5.0))
    assert drop(x, None) is x
