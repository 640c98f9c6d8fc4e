"""Dropout of single elements by a seed, as PEFT defines it for LoRA: drawn again in the backward pass, never kept.

**On a CPU** a mask is an integer as wide as the element, all its bits set where the element stays, and dropping is a bitwise
*and*. Both are memory-speed passes, 0.14 ns an element together where ``bernoulli_`` takes 12 and a boolean mask with ``where``
1.6. The random numbers are the rest: 64 bits wide, from NumPy's SFC64 in half the time of torch's Mersenne Twister, and cut in
eight, 0.24 ns an element. Eight bits know multiples of 1/256; so each row's probability is the multiple below or above, drawn
such that any element is dropped with the probability asked for, to 2^-16 (0.05 becomes 0.050003).

**On a GPU** the mask stays a seed, and one kernel draws and applies it wherever the input is multiplied
(``kernels/triton/dropout.py``): a pass that reads x and writes x, where drawing into memory took four more of 2 to 8 bytes an
element. The probability is the same, the mask another than a CPU's of the same seed.

Shape suffixes: T tokens, I in_features.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integer of an element's bytes
STEPS = 2**16  # that a probability is counted in


@dataclass(frozen=True)
class SeededMask:
    """A mask that is drawn where it is applied.

    Attributes:
        seed: 0 to 2^63 - 1.
        threshold: an element is dropped with probability ``threshold / STEPS``.
    """

    seed: int
    threshold: int


Mask = Tensor | SeededMask


def draw_mask(x: Tensor, probability: float, seed: int) -> Mask:
    """Which elements of ``x`` stay, the same for the same seed.

    Returns:
        On a GPU a ``SeededMask``; else shape of x, integers of its element's width, -1 or 0.
    """
    threshold = round(probability * STEPS)
    if x.is_cuda:
        return SeededMask(seed, threshold)
    rows = x.numel() // x.shape[-1]
    drawn = np.random.SFC64(seed).random_raw(math.ceil((x.numel() + rows) / 8)).view(np.uint8)
    below = torch.from_numpy(((threshold + drawn[:rows].astype(np.uint32)) >> 8).clip(max=255).astype(np.uint8))
    mask = torch.empty(x.shape, dtype=BITS[x.element_size()])
    bytes_ = torch.from_numpy(drawn[rows : rows + x.numel()]).view(x.shape)
    return torch.ge(bytes_, below.view(*x.shape[:-1], 1), out=mask).neg_()


def drop(x_TI: Tensor, mask: Mask | None) -> Tensor:
    """``x`` with zeros where ``mask`` (see ``draw_mask``) drops an element; ``x`` itself without dropout."""
    if mask is None:
        return x_TI
    if isinstance(mask, SeededMask):
        return on_gpu.drop_seeded(x_TI, mask.seed, mask.threshold)
    return torch.bitwise_and(x_TI.view(mask.dtype), mask).view(x_TI.dtype)


def add_dropped_(onto_TI: Tensor, x_TI: Tensor, mask: Mask | None) -> Tensor:
    """Add ``drop(x, mask)`` to ``onto``; on a GPU in the pass that drops."""
    if isinstance(mask, SeededMask):
        return on_gpu.drop_seeded(x_TI, mask.seed, mask.threshold, onto_TI)
    return onto_TI.add_(drop(x_TI, mask))
