"""Weights rounded onto the grid of a GGUF's blocks: what a file will hold of ``W + scale B A`` when its grid stays.

Scales and minima are those that llama.cpp's quantiser chose for the base, importance matrix included. They are kept, and every
weight takes the nearest code on them (clamped to the codes there are). So there is no search to repeat: training and export
round with this function, and the blocks that are written hold the very numbers that were trained. llama.cpp's own codes of the
base are the nearest on their grid, so a fresh adapter (B = 0) gives its file, byte by byte.

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) takes the rounding for the identity in the backward pass,
also beyond the last code; then the gradient of B A is that of ``W + scale B A``, and goes the cheap way through the r-wide
side.

Rows are taken some at a time, so that what is between the weight and its rounded value stays in the cache of a CPU.

Shape suffixes: O out_features, I in_features, R rank, P some of the rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tunesmith.kernels.blocks import DENSE, PIECE, TYPES, Blocks, BlockType, Grid, values_of


def nearest_codes(of: BlockType, weights: Tensor, grid: Grid) -> Tensor:
    """The nearest codes on a grid, fp32 whole numbers, shape (n, weights of a block).

    Args:
        of: the type.
        weights: fp32, shape (n, weights of a block); overwritten.
        grid: of n blocks.
    """
    grouped = weights.view(len(weights), -1, of.group)
    if grid.minimum is not None:
        grouped.add_(grid.minimum[..., None])
    inverse = torch.where(grid.scale == 0, 0.0, 1.0 / grid.scale)
    return grouped.mul_(inverse[..., None]).round_().clamp_(of.low, of.high).view_as(weights)


def _rows(
    weight_OI: Tensor, A_RI: Tensor | None, B_OR: Tensor | None, scale: float, like: Blocks
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows of ``W + scale B A`` in fp32, and of the blocks whose grid they take."""
    step = max(1, PIECE // weight_OI.shape[1])
    for first in range(0, len(weight_OI), step):
        rows = slice(first, first + step)
        sum_PI = weight_OI[rows].to(torch.float32, copy=True)
        if A_RI is not None and B_OR is not None:
            sum_PI.addmm_(B_OR[rows], A_RI, alpha=scale)
        yield rows, sum_PI, like.raw[rows]


@torch.no_grad()
def round_to_grid(
    weight_OI: Tensor, A_RI: Tensor | None, B_OR: Tensor | None, scale: float, like: Blocks, out_OI: Tensor
) -> Tensor:
    """The values that a file holds of ``W + scale B A``, in the dtype of ``out_OI``.

    Args:
        weight_OI: of the base, any floating dtype.
        A_RI, B_OR: fp32; None for the base alone.
        scale: ``alpha / r``.
        like: blocks of the base, whose grid is kept; of a type without one the values are rounded to its dtype.
        out_OI: to be written.
    """
    for rows, sum_PI, raw in _rows(weight_OI, A_RI, B_OR, scale, like):
        if like.kind in DENSE:
            out_OI[rows].copy_(sum_PI.to(DENSE[like.kind]))
            continue
        of = TYPES[like.kind]
        grid = of.grid(raw.reshape(-1, of.nbytes))
        codes = nearest_codes(of, sum_PI.view(-1, of.weights), grid)
        out_OI[rows].copy_(values_of(of, codes, grid).view_as(sum_PI))
    return out_OI


@torch.no_grad()
def blocks_on_grid(weight_OI: Tensor, A_RI: Tensor | None, B_OR: Tensor | None, scale: float, like: Blocks) -> Blocks:
    """The blocks that a file holds of ``W + scale B A``: ``dequantize_blocks`` of them is ``round_to_grid`` to the bit.

    Args: as ``round_to_grid``.
    """
    parts: list[Tensor] = []
    for _, sum_PI, raw in _rows(weight_OI, A_RI, B_OR, scale, like):
        if like.kind in DENSE:
            parts.append(sum_PI.to(DENSE[like.kind]).view(torch.uint8))
            continue
        of = TYPES[like.kind]
        blocks = raw.reshape(-1, of.nbytes)
        codes = nearest_codes(of, sum_PI.view(-1, of.weights), of.grid(blocks))
        parts.append(of.pack(codes.to(torch.int8), blocks).view(len(sum_PI), -1))
    return like._replace(raw=torch.cat(parts))
