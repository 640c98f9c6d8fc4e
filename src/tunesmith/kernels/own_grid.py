"""The Q4_0 grid of weights that lie on one already: those of a model that was trained to be rounded.

Such a release comes in 16 bits: every weight is ``code * d`` of its block of 32, rounded to bf16. llama.cpp's quantiser does
not find that grid again. It takes a block's largest weight for code -8, which it need not be, and the scale from that one
rounded weight; then most scales move, and with another largest code all codes do.

**How a grid is found.** The largest weight has one of sixteen codes. For each its scale follows, and then all the others must
be whole codes, as nearly as two roundings to bf16 allow; the smallest code that fits is taken, which is the coarsest grid. In a
block that lies on none that happens by chance once in 10^30. Then, of the fp16 numbers around the least-squares scale, the one
whose products round to the most weights exactly is the scale.

**What bf16 has lost.** Its eight bits do not tell every fp16 scale of eleven from the next: the codes 1 to 8 have four
different mantissas, and some scales round to the same weights. On made-up blocks all codes come back, all weights are the
release's to the bit when they are rounded again, and the scale is the very one in 42 % and the next one in 38 %.

The sign of a scale shows only where code -8 occurs, the one that has no opposite. Elsewhere it is llama.cpp's convention, by
which the largest weight has a negative code.

Shape suffixes, here: N blocks, C candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

WEIGHTS, CODES = 32, 8
ROUNDING = 2.0**-7  # of a weight and of the largest one, each half a unit of bf16's eight bits
SUBNORMAL = 2.0**-24  # a unit of fp16 near zero, through which a file of 16 bits has gone
AROUND = 4  # fp16 numbers that are tried to either side


class Found(NamedTuple):
    """What was found of blocks.

    Attributes:
        scale_N: fp16 numbers as fp32, 0 where none was found.
        codes: int8, shape (N, 32), -8 to 7.
        has_grid_N: whether a block lies on one; a block of zeros lies on any.
    """

    scale_N: Tensor
    codes: Tensor
    has_grid_N: Tensor


@torch.no_grad()
def find_q4_0(weights: Tensor) -> Found:
    """The grids that blocks lie on.

    Args:
        weights: fp32, shape (N, 32).
    """
    largest_N1 = weights.gather(1, weights.abs().argmax(1, keepdim=True))
    found_N = torch.zeros(len(weights), dtype=torch.bool)
    scale_N1, codes = torch.zeros_like(largest_N1), torch.zeros_like(weights)
    for code in range(1, CODES + 1):
        trial_N1 = largest_N1 / -code
        inverse_N1 = torch.where(trial_N1 == 0, 0.0, 1.0 / trial_N1)
        steps = weights * inverse_N1
        nearest = steps.round()
        slack = nearest.abs() * ROUNDING + SUBNORMAL * inverse_N1.abs()
        fits_N = ((steps - nearest).abs() <= slack).all(1) & (nearest >= -CODES).all(1) & (nearest < CODES).all(1) & ~found_N
        scale_N1[fits_N], codes[fits_N] = trial_N1[fits_N], nearest[fits_N]
        found_N |= fits_N
    return Found(_exact(weights, codes, scale_N1), codes.to(torch.int8), found_N)


def _exact(weights: Tensor, codes: Tensor, trial_N1: Tensor) -> Tensor:
    """The fp16 scale whose products are the most of the weights, the nearest to least squares among equals."""
    squares_N1 = codes.square().sum(1, keepdim=True)
    best_N1 = torch.where(squares_N1 == 0, trial_N1, (weights * codes).sum(1, keepdim=True) / squares_N1)
    bits_N1 = best_N1.half().view(torch.int16)
    offsets_C = torch.tensor(sorted(range(-AROUND, AROUND + 1), key=abs), dtype=torch.int16)
    scale_N, most_N = best_N1[:, 0].half(), torch.full((len(weights),), -1)
    for offset in offsets_C:
        candidate_N1 = (bits_N1 + offset).view(torch.float16)
        products = codes * candidate_N1.float()
        same = (products == weights) | (products.bfloat16().float() == weights) | (products.half().float() == weights)
        count_N = torch.where(candidate_N1[:, 0].isfinite(), same.sum(1), -1)
        better_N = count_N > most_N
        scale_N, most_N = torch.where(better_N, candidate_N1[:, 0], scale_N), torch.maximum(most_N, count_N)
    return scale_N.float()
