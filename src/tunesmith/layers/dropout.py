"""Dropout of single elements by a seed, as PEFT defines it for LoRA: drawn again in the backward pass, never kept.

**On a CPU** a mask is an integer as wide as the element, all its bits set where the element stays, and dropping is a bitwise
*and*. Both are memory-speed passes. ``bernoulli_`` takes 12 ns an element on a CPU; a boolean mask and ``where`` take 1.6, most
of it in two conversions that ATen does not vectorise; this takes 0.5 beside the 0.8 of the random numbers, which are 64 bits
wide and cut in four. The probability is rounded to a multiple of 2^-16 (0.05 becomes 0.050003).

**On a GPU** the mask stays a seed, and one kernel draws and applies it wherever the input is multiplied
(``kernels/triton/dropout.py``): a pass that reads x and writes x, where drawing into memory took four more of 2 to 8 bytes an
element. The probability is the same, the mask another than a CPU's of the same seed.

Shape suffixes: T tokens, I in_features.
"""

import math
from dataclasses import dataclass

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


ROWS_OF_A_DRAW = 4  # a word is four elements, so pieces that make the same mask as the whole begin at a multiple of these rows


class MaskRows:
    """A mask that is drawn some rows at a time: the very one that ``draw_mask`` draws of all rows at once.

    Args:
        probability, seed: as of ``draw_mask``.
    """

    def __init__(self, probability: float, seed: int):
        self._threshold, self._seed, self._row = round(probability * STEPS), seed, 0
        self._generator: torch.Generator | None = None

    def draw(self, x: Tensor) -> Mask:
        """The mask of the next rows; but for the last, a multiple of ``ROWS_OF_A_DRAW``.

        Args:
            x: these rows; its shape, dtype and device are read.
        """
        first, self._row = self._row, self._row + len(x)
        if x.is_cuda:
            return SeededMask(self._seed, self._threshold, first)
        assert first % ROWS_OF_A_DRAW == 0, first
        if self._generator is None:
            self._generator = torch.Generator(x.device).manual_seed(self._seed)
        return _draw(x, self._threshold, self._generator)


def _draw(x: Tensor, threshold: int, generator: torch.Generator) -> Tensor:
    words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    mask = torch.empty(x.shape, dtype=BITS[x.element_size()], device=x.device)
    return torch.ge(drawn, -(2**15) + threshold, out=mask).neg_()


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
