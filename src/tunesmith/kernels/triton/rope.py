"""Rotary position embedding in Triton; the specification is ``tunesmith/kernels/rope.py``.

One program turns a few heads of one token: the cosines and sines of that position are read once and serve them all, and
the two halves of every head are loaded, turned in fp32 and stored where they were, or in another tensor, which the features
that are not turned go to as well. In place is safe without a barrier because both members of a pair belong to the same
program and both are loaded before either is stored.

Refused: one program for all heads of several tokens, which saves nothing (the cosines are in the cache either way) and
needs a third dimension in the tile.

Shape suffixes: T tokens, H query heads (or key heads), K head dimension.
"""

# Triton's types do not say how a kernel is launched: keywords, numbers for constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024  # elements of a half tile


@triton.jit
def _rotate(
    x_ptr,
    out_ptr,
    cos_ptr,
    sin_ptr,
    H,
    K,
    half,
    x_stride_T,
    x_stride_H,
    out_stride_T,
    out_stride_H,
    cos_stride,
    sin_stride,
    INVERSE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64) * HEADS + tl.arange(0, HEADS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (head < H) & (col < half)
    cos = tl.load(cos_ptr + token * cos_stride + col, col < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * sin_stride + col, col < half, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    x_ptr += token * x_stride_T + head * x_stride_H
    out_ptr += token * out_stride_T + head * out_stride_H
    first = tl.load(x_ptr + col, mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + half + col, mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + col, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask)
    tl.store(out_ptr + half + col, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask)
    if REST:
        rest = 2 * half + tl.arange(0, REST)[None, :]
        beyond = (head < H) & (rest < K)
        tl.store(out_ptr + rest, tl.load(x_ptr + rest, beyond), beyond)


def rope_(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor, inverse: bool = False, out: Tensor | None = None) -> Tensor:
    """As ``tunesmith.kernels.rope.rope_``: turns ``x_THK`` in place, or into ``out``."""
    T, H, K = x_THK.shape
    half = cos_TK.shape[1] // 2
    out_THK = x_THK if out is None else out
    assert x_THK.dtype != torch.float64 and x_THK.stride(2) == 1 and 2 * half <= K, (x_THK.dtype, x_THK.stride(), K)
    assert out_THK.shape == x_THK.shape and out_THK.stride(2) == 1, (out_THK.shape, out_THK.stride())
    assert cos_TK.stride(1) == 1 and sin_TK.stride(1) == 1 and len(cos_TK) == T, (cos_TK.shape, cos_TK.stride())
    block = triton.next_power_of_2(half)
    heads = min(triton.next_power_of_2(H), max(1, TILE // block))
    if T * H:
        _rotate[(T, triton.cdiv(H, heads))](
            x_THK,
            out_THK,
            cos_TK,
            sin_TK,
            H,
            K,
            half,
            *(x_THK.stride(0), x_THK.stride(1), out_THK.stride(0), out_THK.stride(1), cos_TK.stride(0), sin_TK.stride(0)),
            INVERSE=inverse,
            HEADS=heads,
            BLOCK=block,
            REST=0 if out is None or 2 * half == K else triton.next_power_of_2(K - 2 * half),
        )
    return out_THK
