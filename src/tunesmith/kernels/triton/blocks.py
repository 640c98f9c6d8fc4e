"""The blocks of a GGUF file unpacked in Triton; the specification is ``tunesmith/kernels/blocks.py``.

A program unpacks some blocks, a lane a weight. Bytes that neighbouring lanes share come from the first-level cache, and the
fp16 numbers of a block are put together from two bytes, since blocks of 18 or 210 bytes begin anywhere. Products and
differences are rounded one by one, as llama.cpp rounds them: fusing them is turned off. Rows may be written apart
(``layers/lora.py``).

Tile sizes follow from the type and have not been tuned on any device.

Shape suffixes: O out_features, I in_features.
"""

# Triton's types do not say how a kernel is launched, nor that a kernel may call another.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from tunesmith.kernels.blocks import Blocks

WEIGHTS = 1024  # of a program
SMALL = {"Q4_0": (4, False), "Q4_1": (4, True), "Q5_0": (5, False), "Q5_1": (5, True), "Q8_0": (8, False)}  # bits, minimum
LARGE = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6}  # bits


@triton.jit
def _half(ptr, mask):
    """The fp16 number of two bytes, as fp32."""
    low, high = tl.load(ptr, mask, other=0).to(tl.uint16), tl.load(ptr + 1, mask, other=0).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _byte(ptr, mask):
    return tl.load(ptr, mask, other=0).to(tl.int32)


@triton.jit
def _signed(ptr, mask):
    byte = _byte(ptr, mask)
    return byte - 256 * (byte >> 7)


@triton.jit
def _of_32(base, lane, mask, BITS: tl.constexpr, MINIMUM: tl.constexpr):
    """Weights of a type of 32."""
    scale = _half(base, mask)
    if BITS == 8:
        return _signed(base + 2 + lane, mask).to(tl.float32) * scale
    HEAD: tl.constexpr = 4 if MINIMUM else 2
    FIFTH: tl.constexpr = 4 if BITS == 5 else 0
    byte = _byte(base + HEAD + FIFTH + lane % 16, mask)
    code = tl.where(lane < 16, byte & 15, byte >> 4)
    if BITS == 5:
        code |= ((_byte(base + HEAD + lane // 8, mask) >> (lane % 8)) & 1) << 4
    if MINIMUM:
        return code.to(tl.float32) * scale + _half(base + 2, mask)
    return (code - (1 << (BITS - 1))).to(tl.float32) * scale


@triton.jit
def _of_256(base, lane, mask, BITS: tl.constexpr):
    """Weights of a K-type."""
    if BITS == 6:
        side, run, place = lane // 128, lane % 128 // 32, lane % 32
        byte = _byte(base + side * 64 + run % 2 * 32 + place, mask)
        code = tl.where(run < 2, byte & 15, byte >> 4)
        code |= ((_byte(base + 128 + side * 32 + place, mask) >> (2 * run)) & 3) << 4
        scale = _signed(base + 192 + side * 8 + run * 2 + place // 16, mask).to(tl.float32) * _half(base + 208, mask)
        return (code - 32).to(tl.float32) * scale
    group = lane // 32
    byte = _byte(base + (48 if BITS == 5 else 16) + lane // 64 * 32 + lane % 32, mask)
    code = tl.where(group % 2 == 0, byte & 15, byte >> 4)
    if BITS == 5:
        code |= ((_byte(base + 16 + lane % 32, mask) >> group) & 1) << 4
    first, second = _byte(base + 4 + group % 4, mask), _byte(base + 8 + group % 4, mask)
    third = _byte(base + 12 + group % 4, mask)
    factor = tl.where(group < 4, first & 63, (third & 15) | ((first >> 6) << 4))
    offset = tl.where(group < 4, second & 63, (third >> 4) | ((second >> 6) << 4))
    scale, minimum = factor.to(tl.float32) * _half(base, mask), offset.to(tl.float32) * _half(base + 2, mask)
    return code.to(tl.float32) * scale - minimum


@triton.jit
def _dequantize(
    raw_ptr,
    out_ptr,
    blocks,
    per_row,
    stride,
    NBYTES: tl.constexpr,
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
    MINIMUM: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    lane = tl.arange(0, SIZE)[None, :]
    mask = (block < blocks) & (lane < SIZE)
    base = raw_ptr + block.to(tl.int64) * NBYTES
    weight = _of_32(base, lane, mask, BITS, MINIMUM) if SIZE == 32 else _of_256(base, lane, mask, BITS)
    row = block // per_row
    place = row.to(tl.int64) * stride + (block - row * per_row) * SIZE + lane
    tl.store(out_ptr + place, weight.to(out_ptr.dtype.element_ty), mask)


def dequantize_blocks(q: "Blocks", out_OI: Tensor) -> Tensor:
    """Write the dense weight; see ``tunesmith.kernels.blocks``.

    Args:
        q: on the device of ``out_OI``, its bytes contiguous.
        out_OI: shape (rows, columns); rows may be strided.
    """
    rows, columns = out_OI.shape
    assert q.raw.is_contiguous() and out_OI.stride(1) == 1 and out_OI.dtype != torch.float64
    size = 32 if q.kind in SMALL else 256
    bits, minimum = SMALL[q.kind] if q.kind in SMALL else (LARGE[q.kind], False)
    per_row, at_once = columns // size, WEIGHTS // size
    blocks = rows * per_row
    _dequantize[(triton.cdiv(blocks, at_once),)](
        q.raw,
        out_OI,
        blocks,
        per_row,
        out_OI.stride(0),
        NBYTES=q.raw.shape[1] // per_row,
        SIZE=size,
        BITS=bits,
        MINIMUM=minimum,
        BLOCKS=at_once,
        enable_fp_fusion=False,
    )
    return out_OI
