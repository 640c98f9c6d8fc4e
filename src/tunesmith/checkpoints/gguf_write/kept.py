"""How much of what training added is left after rounding: the check that a coarse grid did not take it back.

Training adds D to a weight W, a hundredth of it or less, and a type of four bits has steps several times as large. Where W
lies anyhow between the steps, rounding W + D errs at random, and the errors do not point along D. Where W lies *on* the
grid, which is so whenever the base was a file of that type, every weight goes back to where it was: the file is the base again.
The size of the error tells nothing of that (it is smaller than any), its direction all: with E the error of rounding,

    share kept = 1 + <E, D> / <D, D>

is 1 where errors are random, 0 where the file is the base, and above 1 where a grid enlarges what was added. A model of 135M
weights that lies in Q4_1, tuned, keeps 0.06 in Q4_1, 0.07 in Q4_K, 0.26 in Q5_K, 0.92 in Q4_0, 0.99 in Q5_0, and 1.57 in Q5_1
(docs/explanation/bits.md).

Errors at random still leave a share beside 1, by ``noise``: their size over that of D, over the root of the number of weights.

Memory: as for quantising. Cost: some 10 ns a weight and core.

Shape suffixes: P some of the rows, O out_features, I in_features, R rank; here: B bytes.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import Piece, aligned, ggml, in_order, pieces_of, read_piece
from tunesmith.checkpoints.gguf_write.types import row_bytes, sources_of
from tunesmith.checkpoints.gguf_write.unpack import values_of
from tunesmith.kernels.ggml import unpacker

BAND = 0.25  # beside 1: a share outside is no rounding any more, but another training


class Added(NamedTuple):
    """What training added to a matrix, ``left @ right``, rows as the file has them.

    Attributes:
        left_OR: fp32, the scale included.
        right_RI: fp32.
    """

    left_OR: Tensor
    right_RI: Tensor

    def rows(self, first: int, count: int) -> Tensor:
        """Some of its rows, shape (P, I)."""
        return self.left_OR[first : first + count] @ self.right_RI


class Kept(NamedTuple):
    """Sums over weights, from which the share follows; of several parts they are added.

    Attributes:
        along: of error times added.
        added, error: of their squares.
        spread: of error squared times added squared over the number of weights, part by part.
    """

    along: float = 0.0
    added: float = 0.0
    error: float = 0.0
    spread: float = 0.0

    @property
    def share(self) -> float:
        """Of what was added; 1 where nothing was."""
        return 1.0 + self.along / self.added if self.added else 1.0

    @property
    def noise(self) -> float:
        """Standard error of the share if errors are random."""
        return math.sqrt(self.spread) / self.added if self.added else 0.0

    @property
    def is_lost(self) -> bool:
        """Whether the share is farther from 1 than ``BAND``, and not by chance."""
        return abs(self.share - 1.0) - 2.0 * self.noise > BAND

    def plus(self, other: "Kept") -> "Kept":
        """Both together."""
        return Kept(*map(math.fsum, zip(self, other, strict=True)))

    def times(self, count: float) -> "Kept":
        """So many weights as these."""
        return Kept(*(count * value for value in self))


Updates = Mapping[str, Added]  # by tensor


@torch.no_grad()
def kept_of(weight_PI: Tensor, rounded_PI: Tensor, added_PI: Tensor) -> Kept:
    """The sums of some rows, all fp32 and of one shape."""
    error_PI = rounded_PI - weight_PI
    along = float((error_PI * added_PI).sum(dtype=torch.float64))
    added = float(added_PI.square().sum(dtype=torch.float64))
    error = float(error_PI.square().sum(dtype=torch.float64))
    return Kept(along, added, error, error * added / added_PI.numel())


def kept_in_file(source: Path, file: Path, updates: Updates) -> Kept:
    """How much of all that was added a quantised file keeps.

    Args:
        source: the 16-bit GGUF that it was made from, which holds what was added.
        file: the quantised one.

    Raises:
        ExportError: a weight that is not finite.
    """
    before, after = aligned(source), {tensor.name: tensor for tensor in GgufReader(file).tensors}
    offsets = {tensor.name: tensor.data_offset for tensor in before.tensors}
    kinds = {name: tensor.tensor_type for name, tensor in after.items() if unpacker(tensor.tensor_type.name) is not None}
    pieces = (
        piece
        for tensor in sources_of(before)
        if tensor.name in updates and tensor.name in kinds  # 16 bits are no rounding to speak of
        for piece in pieces_of(tensor, kinds[tensor.name], offsets[tensor.name], None)
    )

    def measured(piece: Piece) -> Kept:
        start = after[piece.tensor].data_offset + piece.first * (width := row_bytes(piece.target, piece.columns))
        blocks_B = np.fromfile(file, np.uint8, count=piece.rows * width, offset=start)
        weight_PI = torch.from_numpy(ggml().widen(read_piece(source, piece), piece.kind, piece.columns))
        added_PI = updates[piece.tensor].rows(piece.first, piece.rows)
        return kept_of(weight_PI, values_of(blocks_B, piece.target, piece.columns), added_PI)

    return functools.reduce(Kept.plus, (kept for _, kept in in_order(measured, pieces)), Kept())
