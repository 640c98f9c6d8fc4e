"""Searched NF4 is the same format with less error, whatever pieces the weight comes in."""

import pytest
import torch

from tunesmith.kernels.nf4 import dequantize_nf4, quantize_nf4, quantize_nf4_parts
from tunesmith.kernels.nf4_search import importance_of, searched


def _heavy(rows, width, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, width, generator=drawn)
    return normal / (torch.randn(5, rows, width, generator=drawn).square().mean(0)).sqrt()  # Student's t with 5 degrees


def _cost(q, weight, importance):
    return float(((dequantize_nf4(q, torch.float32) - weight).square() * importance).sum())


@pytest.mark.parametrize("width", [128, 80])  # blocks within rows, and across
def test_the_error_that_counts_is_smaller_by_a_tenth_at_least(width):
    weight, drawn = _heavy(96, width), torch.Generator().manual_seed(1)
    gradient, inputs = torch.rand(96, generator=drawn), torch.rand(width, generator=drawn) ** 4
    plain, ones, importance = quantize_nf4(weight), torch.ones(96, width), gradient[:, None] * inputs
    alike = importance_of(torch.ones(96), torch.ones(width), "cpu")
    unweighted = quantize_nf4_parts([weight], weight.shape, "cpu", searched(alike))
    weighted = quantize_nf4_parts([weight], weight.shape, "cpu", searched(importance_of(gradient, inputs, "cpu")))
    assert weighted.nbytes == plain.nbytes
    assert _cost(unweighted, weight, ones) < 0.93 * _cost(plain, weight, ones)
    assert _cost(weighted, weight, importance) < 0.8 * _cost(plain, weight, importance)
    assert _cost(weighted, weight, importance) < 0.9 * _cost(unweighted, weight, importance)


def test_the_bytes_do_not_depend_on_the_pieces_and_zeros_stay_zeros():
    weight = _heavy(50, 90)
    weight[7:9] = 0
    encode = searched(importance_of(torch.rand(50), torch.rand(90), "cpu"))
    whole = quantize_nf4_parts([weight], weight.shape, "cpu", encode)
    pieces = quantize_nf4_parts(weight.reshape(-1).split(333), weight.shape, "cpu", encode)
    for name in ("packed", "absmax", "nested_absmax", "offset"):
        assert torch.equal(torch.as_tensor(vars(whole)[name]), torch.as_tensor(vars(pieces)[name])), name
    assert not dequantize_nf4(whole, torch.float32)[7:9, :64].any()
