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
        first_row: of the tensor of which this one is some rows.
    """

    seed: int
    threshold: int
    first_row: int = 0


Mask = Tensor | SeededMask


def draw_mask(x: Tensor, probability: float, seed: int) -> Mask:
    """Which elements of ``x`` stay, the same for the same seed.

    Returns:
        On a GPU a ``SeededMask``; else shape of x, integers of its element's width, -1 or 0.
    """
    return MaskRows(probability, seed).draw(x)


class MaskRows:
    """A mask that is drawn some rows at a time: the very one that ``draw_mask`` draws of all rows at once.

    Args:
        probability, seed: as of ``draw_mask``.
    """

    def __init__(self, probability: float, seed: int):
        self._threshold, self._seed, self._row = round(probability * STEPS), seed, 0
        self._bits: np.random.SFC64 | None = None

    def draw(self, x: Tensor) -> Mask:
        """The mask of the next rows.

        Args:
            x: these rows; its shape, dtype and device are read.
        """
        rows = x.numel() // x.shape[-1]
        first, self._row = self._row, self._row + rows
        if x.is_cuda:
            return SeededMask(self._seed, self._threshold, first)
        if self._bits is None:
            self._bits = np.random.SFC64(self._seed)
        return _draw(x, rows, self._threshold, self._bits)


def _draw(x: Tensor, rows: int, threshold: int, bits: np.random.SFC64) -> Tensor:
    """Of each row a word that rounds its probability, then a byte an element."""
    words, columns = 1 + -(-x.shape[-1] // 8), slice(8, 8 + x.shape[-1])
    drawn = bits.random_raw(rows * words).view(np.uint8).reshape(rows, 8 * words)
    below = ((threshold + drawn[:, :1].astype(np.uint32)) >> 8).clip(max=255).astype(np.uint8)
    mask = torch.empty(rows, x.shape[-1], dtype=BITS[x.element_size()])
    return torch.ge(torch.from_numpy(drawn[:, columns]), torch.from_numpy(below), out=mask).neg_().view(x.shape)


def drop(x_TI: Tensor, mask: Mask | None) -> Tensor:
    """``x`` with zeros where ``mask`` (see ``draw_mask``) drops an element; ``x`` itself without dropout."""
    if mask is None:
        return x_TI
    if isinstance(mask, SeededMask):
        return on_gpu.drop_seeded(x_TI, mask.seed, mask.threshold, first_row=mask.first_row)
    return torch.bitwise_and(x_TI.view(mask.dtype), mask).view(x_TI.dtype)


def add_dropped_(onto_TI: Tensor, x_TI: Tensor, mask: Mask | None) -> Tensor:
    """Add ``drop(x, mask)`` to ``onto``; on a GPU in the pass that drops."""
    if isinstance(mask, SeededMask):
        return on_gpu.drop_seeded(x_TI, mask.seed, mask.threshold, onto_TI, mask.first_row)
    return onto_TI.add_(drop(x_TI, mask))
