"""Dropout by a seed in Triton: one pass that draws the mask and applies it; nothing is kept but the seed.

The mask is a pure function of (seed, row, column): element (t, i) stays where 16 bits of Philox-4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3") are not below a threshold. The key is the seed, the counter is (i // 8, t, 0, 0),
and the four words give eight columns, the low half of each first. So it does not depend on strides, on block sizes or on
the card, and every place that multiplies the same input draws the same mask: forward, recomputed, and backward.

Eight elements share the ten rounds of one call, some five multiplications each, which hide behind the memory traffic. Refused:
sixteen lanes of 8 bits (0.05 would be 0.051), and a mask in memory (2 bytes an element, written and read again).

It is not the mask that a CPU draws from the same seed (``layers/dropout.py``): there PyTorch's generator is the fastest source.

Shape suffixes: T tokens, I in_features.
"""

# Triton's types do not say how a kernel is launched, nor that a kernel may call another.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 8  # columns of one call of Philox
GROUPS = 256  # calls a program, at most


@triton.jit
def drawn_bits(seed, row, eight):
    """16 bits for each of eight columns, given by row and number of the eight: the last dimension times eight."""
    first, second, third, fourth = tl.randint4x(seed.to(tl.int64), (row << 32) + eight)
    # Interleaving pairs up neighbours: words 0 and 2, then 1 and 3, stand in the order 0 1 2 3.
    low = tl.interleave(tl.interleave(first & 0xFFFF, third & 0xFFFF), tl.interleave(second & 0xFFFF, fourth & 0xFFFF))
    high = tl.interleave(tl.interleave(first >> 16, third >> 16), tl.interleave(second >> 16, fourth >> 16))
    return tl.interleave(low, high).to(tl.int32)


@triton.jit(do_not_specialize=["seed", "threshold", "first_row"])
def _drop(x_ptr, out_ptr, seed, threshold, first_row, inputs, x_stride, out_stride, ADDS: tl.constexpr, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    drawn = drawn_bits(seed, row + first_row, group)
    col = tl.program_id(1) * GROUPS * 8 + tl.arange(0, GROUPS * 8)
    mask = col < inputs
    x = tl.load(x_ptr + row * x_stride + col, mask, other=0.0)
    left = tl.where(drawn >= threshold, x, 0.0)
    if ADDS:
        left = tl.load(out_ptr + row * out_stride + col, mask, other=0.0).to(tl.float32) + left.to(tl.float32)
    tl.store(out_ptr + row * out_stride + col, left.to(out_ptr.dtype.element_ty), mask)


def drop_seeded(x_TI: Tensor, seed: int, threshold: int, onto: Tensor | None = None, first_row: int = 0) -> Tensor:
    """``x_TI`` with zeros where the seed's mask drops an element; added to ``onto`` where that is given.

    Args:
        x_TI: shape (T, I), fp32, fp16 or bf16, last dimension contiguous.
        seed: 0 to 2^63 - 1.
        threshold: an element is dropped with probability ``threshold / 2^16``.
        onto: shape and dtype of x, last dimension contiguous; overwritten by the sum, which is rounded once.
        first_row: of the tensor of which x is some rows; its mask there is drawn.

    Returns:
        ``onto``, or a new contiguous tensor.
    """
    tokens, inputs = x_TI.shape
    out_TI = torch.empty(x_TI.shape, dtype=x_TI.dtype, device=x_TI.device) if onto is None else onto
    assert x_TI.dtype != torch.float64 and out_TI.shape == x_TI.shape and out_TI.dtype == x_TI.dtype
    assert x_TI.stride(1) == out_TI.stride(1) == 1, (x_TI.stride(), out_TI.stride())
    groups = min(triton.next_power_of_2(triton.cdiv(max(inputs, 1), LANES)), GROUPS)
    if tokens and inputs:
        grid = (tokens, triton.cdiv(inputs, groups * LANES))
        sizes = (inputs, x_TI.stride(0), out_TI.stride(0))
        _drop[grid](x_TI, out_TI, seed, threshold, first_row, *sizes, ADDS=onto is not None, GROUPS=groups)
    return out_TI
