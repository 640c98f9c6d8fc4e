"""Weights rounded onto the grid of a GGUF's blocks: what a file will hold of ``W + scale B A`` when its grid stays.

Scales and minima are those that llama.cpp's quantiser chose for the base, importance matrix included. They are kept, and every
weight takes the nearest code on them (clamped to the codes there are). So there is no search to repeat: training and export
round with this function, and the blocks that are written hold the very numbers that were trained. llama.cpp's own codes of the
base are the nearest on their grid, so a fresh adapter (B = 0) gives its file, byte by byte.

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) takes the rounding for the identity in the backward pass,
also beyond the last code; then the gradient of B A is that of ``W + scale B A``, and goes the cheap way through the r-wide
side.

**A grid is unpacked once** and stands as fp32 scales and minima, one or two bits a weight: every step reads it, and unpacking
six-bit scales took longer than all else. Of the passes that are left (times 1 / scale, round, clamp, times scale) each takes a
CPU's core 0.05 to 0.1 ns a weight while that stays in the cache, and the product B A 0.3: so rows are taken some at a time
there. A GPU, which is bound by launches, takes many.

Shape suffixes: O out_features, I in_features, R rank, P some of the rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels.blocks import DENSE, PIECE, TYPES, Blocks, BlockType, Grid

GPU_PIECE = 2**24  # weights that are rounded at a time on a GPU: 64 MB of fp32


class MatrixGrid(NamedTuple):
    """The grid of a matrix.

    Attributes:
        kind: llama.cpp's name of the type; of one without a grid values are rounded to its dtype.
        scales, minima: fp32, side by side as the weights of a row lie; None where the type has none.
    """

    kind: str
    scales: Tensor | None = None
    minima: Tensor | None = None

    def rows(self, rows: slice, device: torch.device) -> Grid:
        """Of some rows, a scale a line."""
        assert self.scales is not None
        scale, minimum = (None if x is None else x[rows].reshape(-1, 1).to(device) for x in (self.scales, self.minima))
        assert scale is not None
        return Grid(scale, minimum)


def grid_of(like: Blocks) -> MatrixGrid:
    """The grid of a matrix in blocks."""
    if like.kind in DENSE:
        return MatrixGrid(like.kind)
    of, scales, minima = TYPES[like.kind], [], []
    step = max(1, PIECE // like.shape[1])
    for first in range(0, len(like.raw), step):
        raw = like.raw[first : first + step]
        grid = of.grid(raw.reshape(-1, of.nbytes))
        scales.append(grid.scale.reshape(len(raw), -1))
        minima += [] if grid.minimum is None else [grid.minimum.reshape(len(raw), -1)]
    return MatrixGrid(like.kind, torch.cat(scales), torch.cat(minima) if minima else None)


def nearest_codes_(of: BlockType, weights: Tensor, grid: Grid) -> Tensor:
    """The nearest codes on a grid, whole numbers, in the place of the weights.

    Args:
        of: the type.
        weights: fp32, shape (scales, weights of a scale).
        grid: shape (scales, 1).
    """
    if grid.minimum is not None:
        weights.add_(grid.minimum)
    inverse = torch.where(grid.scale == 0, 0.0, 1.0 / grid.scale)
    return weights.mul_(inverse).round_().clamp_(of.low, of.high)


def _rows(
    weight_OI: Tensor, A_RI: Tensor | None, B_OR: Tensor | None, scale: float, out_OI: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of ``W + scale B A`` in fp32: in those of ``out_OI`` where that is fp32, else all in the same memory."""
    step = max(1, (GPU_PIECE if weight_OI.is_cuda else PIECE) // weight_OI.shape[1])
    scratch_PI = None
    if out_OI is None or out_OI.dtype != torch.float32:
        scratch_PI = weight_OI.new_empty(min(step, len(weight_OI)), weight_OI.shape[1], dtype=torch.float32)
    for first in range(0, len(weight_OI), step):
        rows = slice(first, min(first + step, len(weight_OI)))
        sum_PI = out_OI[rows] if scratch_PI is None and out_OI is not None else scratch_PI[: rows.stop - first]  # type: ignore[index]
        sum_PI.copy_(weight_OI[rows])
        if A_RI is not None and B_OR is not None:
            sum_PI.addmm_(B_OR[rows], A_RI, alpha=scale)
        yield rows, sum_PI


@torch.no_grad()
def round_to_grid(
    weight_OI: Tensor, A_RI: Tensor | None, B_OR: Tensor | None, scale: float, grid: MatrixGrid, out_OI: Tensor
) -> Tensor:
    """The values that a file holds of ``W + scale B A``, in the dtype of ``out_OI``.

    Args:
        weight_OI: of the base, any floating dtype.
        A_RI, B_OR: fp32; None for the base alone.
        scale: ``alpha / r``.
        grid: that is kept.
        out_OI: to be written; its rows lie one behind another.
    """
    for rows, sum_PI in _rows(weight_OI, A_RI, B_OR, scale, out_OI):
        if grid.kind in DENSE:
            sum_PI.copy_(sum_PI.to(DENSE[grid.kind]))
        else:
            of = TYPES[grid.kind]
            part, weights = grid.rows(rows, sum_PI.device), sum_PI.view(-1, of.group)
            nearest_codes_(of, weights, part).mul_(part.scale)
            if part.minimum is not None:
                weights.sub_(part.minimum)
        if out_OI.dtype != torch.float32:
            out_OI[rows].copy_(sum_PI)
    return out_OI


@torch.no_grad()
def blocks_on_grid(weight_OI: Tensor, A_RI: Tensor | None, B_OR: Tensor | None, scale: float, like: Blocks) -> Blocks:
    """The blocks that a file holds of ``W + scale B A``: ``dequantize_blocks`` of them is ``round_to_grid`` to the bit.

    Args: as ``round_to_grid``.
        like: blocks of the base on the CPU, whose grid is kept; the sum is made where the weight lies, as it is in training.
    """
    parts: list[Tensor] = []
    grid = grid_of(like)
    for rows, sum_PI in _rows(weight_OI, A_RI, B_OR, scale, None):
        if like.kind in DENSE:
            parts.append(sum_PI.to(DENSE[like.kind]).view(torch.uint8).cpu())
            continue
        of = TYPES[like.kind]
        codes = nearest_codes_(of, sum_PI.view(-1, of.group), grid.rows(rows, sum_PI.device))
        blocks = like.raw[rows].reshape(-1, of.nbytes)
        parts.append(of.pack(codes.view(-1, of.weights).to(torch.int8).cpu(), blocks).view(len(sum_PI), -1))
    return like._replace(raw=torch.cat(parts))
