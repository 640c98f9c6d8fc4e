"""NF4 whose absmax are searched: the same format at the same bytes, with less of the error that counts.

bitsandbytes divides a block by its largest magnitude. That one weight is then exact and all others lie on a grid as wide as it,
though mostly a narrower grid that clips it costs less. Here each block tries some multiples of its absmax, takes the codes of
the one with the least error, and then the scale that is best for those codes in the sense of least squares, if codes on it are
better still. Errors are weighted by what the loss says of the channels (``bits/sensitivity.py``).

Every bit is the same on every device: a block's error is added up by halves, with element-wise additions alone, so that a GPU
that trains and a CPU that merges choose alike.

Cost: some 120 ns a weight and core, where the plain quantiser takes 10; on a GPU a gigabyte for a moment, since a piece is 16
million weights. Refused: codes chosen against the absmax as it is after its own quantisation, which needs a second pass over
the weight and moves the scale by less than a percent.

Shape suffixes: O out_features, I in_features, Q NF4 blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tunesmith.kernels.nf4 import BLOCK, Encode, nearest_code, values

FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of the largest magnitude
_SMALLEST = 1e-38
Importance = Callable[[int, int], Tensor]
"""Weights of the squared errors of a run of the flat weight, by its first place and its length; fp32."""


def importance_of(gradient_O: Tensor, input_I: Tensor, device: torch.device | str) -> Importance:
    """What the loss says of a matrix: the weight of element (o, i) is ``gradient_o * input_i``.

    Args:
        gradient_O, input_I: mean squares, see ``bits.sensitivity.Sensitivity``.
        device: of the weight.
    """
    gradient_O, input_I = gradient_O.to(device, torch.float32), input_I.to(device, torch.float32)
    width = len(input_I)

    def of(start: int, count: int) -> Tensor:
        first, last = start // width, -(-(start + count) // width)
        rows = gradient_O[first:last, None] * input_I
        return rows.view(-1)[start - first * width :][:count]

    return of


def searched(importance: Importance) -> Encode:
    """How ``quantize_nf4_parts`` finds absmax and codes of least error.

    Args:
        importance: weights of the squared errors.
    """

    def encode(piece: Tensor, start: int, absmax_Q: Tensor) -> Tensor:
        weights = importance(start, len(piece))
        missing = -len(piece) % BLOCK
        if missing:
            piece, weights = (torch.nn.functional.pad(x, (0, missing)) for x in (piece, weights))
        codes, best_Q = _search(piece.view(-1, BLOCK), weights.view(-1, BLOCK))
        absmax_Q.copy_(best_Q)
        return codes.view(-1)[: codes.numel() - missing]

    return encode


def _search(blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (Q, 64) and absmax (Q,) of least weighted error."""
    largest_Q = blocks.abs().amax(1)
    codes, errors_Q = _coded(blocks, weights, largest_Q)
    absmax_Q = largest_Q.clone()
    for factor in FACTORS[1:]:
        _take_better_(blocks, weights, largest_Q * factor, codes, absmax_Q, errors_Q)
    table = values(blocks.device)[codes.to(torch.int32)]
    weighted = weights * table
    fitted_Q = _added_up(weighted * blocks) / _added_up(weighted * table).clamp(min=_SMALLEST)
    usable_Q = (fitted_Q > 0) & fitted_Q.isfinite()
    _take_better_(blocks, weights, torch.where(usable_Q, fitted_Q, absmax_Q), codes, absmax_Q, errors_Q)
    return codes, absmax_Q


def _take_better_(blocks: Tensor, weights: Tensor, tried_Q: Tensor, codes: Tensor, absmax_Q: Tensor, errors_Q: Tensor) -> None:
    """Take other scales for the blocks in which they leave a smaller error."""
    other, others_Q = _coded(blocks, weights, tried_Q)
    better_Q = others_Q < errors_Q
    codes.copy_(torch.where(better_Q[:, None], other, codes))
    absmax_Q.copy_(torch.where(better_Q, tried_Q, absmax_Q))
    errors_Q.copy_(torch.where(better_Q, others_Q, errors_Q))


def _coded(blocks: Tensor, weights: Tensor, absmax_Q: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes on a scale, and the weighted squared error of each block."""
    quotients = (blocks * (1.0 / absmax_Q.clamp(min=_SMALLEST))[:, None]).clamp_(-1, 1)
    codes = nearest_code(quotients.view(-1)).view_as(blocks)
    error = values(blocks.device)[codes.to(torch.int32)] * absmax_Q[:, None]
    error.sub_(blocks)
    return codes, _added_up(error.square_().mul_(weights))


def _added_up(x: Tensor) -> Tensor:
    """The sum of each row of 64, by halves: the same bits on every device."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    return x[:, 0]
