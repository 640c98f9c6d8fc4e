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
        scale: of each block, fp16 numbers as fp32, 0 where none was found.
        codes: int8, shape (n, 32), -8 to 7.
        has_grid: whether a block lies on one; a block of zeros lies on any.
    """

    scale: Tensor
    codes: Tensor
    has_grid: Tensor


@torch.no_grad()
def find_q4_0(weights: Tensor) -> Found:
    """The grids that blocks lie on.

    Args:
        weights: fp32, shape (n, 32).
    """
    largest = weights.gather(1, weights.abs().argmax(1, keepdim=True))
    found = torch.zeros(len(weights), dtype=torch.bool)
    scale, codes = torch.zeros_like(largest), torch.zeros_like(weights)
    for code in range(1, CODES + 1):
        trial = largest / -code
        inverse = torch.where(trial == 0, 0.0, 1.0 / trial)
        steps = weights * inverse
        nearest = steps.round()
        slack = nearest.abs() * ROUNDING + SUBNORMAL * inverse.abs()
        fits = ((steps - nearest).abs() <= slack).all(1) & (nearest >= -CODES).all(1) & (nearest < CODES).all(1) & ~found
        scale[fits], codes[fits] = trial[fits], nearest[fits]
        found |= fits
    return Found(_exact(weights, codes, scale), codes.to(torch.int8), found)


def _exact(weights: Tensor, codes: Tensor, trial: Tensor) -> Tensor:
    """The fp16 scale whose products are the most of the weights, the nearest to least squares among equals."""
    squares = codes.square().sum(1, keepdim=True)
    best = torch.where(squares == 0, trial, (weights * codes).sum(1, keepdim=True) / squares)
    bits = best.half().view(torch.int16)
    offsets = torch.tensor(sorted(range(-AROUND, AROUND + 1), key=abs), dtype=torch.int16)
    scale, most = best[:, 0].half(), torch.zeros(len(weights)).sub_(1)
    for offset in offsets:
        candidate = (bits + offset).view(torch.float16)
        products = codes * candidate.float()
        same = (products == weights) | (products.bfloat16().float() == weights) | (products.half().float() == weights)
        count = torch.where(candidate[:, 0].isfinite(), same.sum(1), -1)
        better = count > most
        scale, most = torch.where(better, candidate[:, 0], scale), torch.maximum(most, count)
    return scale.float()
