"""NF4 in Triton: the dense weight, and its product with few tokens; the specification is ``tunesmith/kernels/nf4.py``.

``dequantize_nf4`` reads a byte and writes two weights: five eighths of the time of a bf16 copy is the floor. The 16
values and the 256 of the absmax codes are tables in memory, which the first-level cache holds after the first visit. Loads
are what such a kernel is bound by, so an absmax is made once a block, and masks compare bytes with their number, which lets
the compiler read eight at a time: 20 loads for 16 weights, 16 of them from the table, where one absmax a weight took 72.
Rows may be written apart, beside columns of somebody else's (``layers/lora.py``).

``nf4_matmul`` serves the decoding of text, where T is one to a few tokens and the weight is read for a single product: it
is unpacked in registers and never written, so 0.52 bytes a weight are moved instead of 4.5. What an adapter and a bias add
goes into the same accumulator, so that it is rounded once (``kernels/lora.py``). A byte holds two neighbouring columns,
therefore x is split into its even and its odd columns, and two products are added up: nothing is interleaved. Where rows are
multiples of 64 long, a step of the loop covers one block of each row and needs one absmax a row; other lengths take the
general way, each weight by its own byte and absmax.

Products of value and absmax are rounded as in PyTorch: fusing a multiplication and an addition into one rounding is
turned off for the absmax. Refused: splitting the sum over programs (atomics, other bits in each run) and autotuning. Tile
sizes follow from the shape and have not been tuned on any device.

Shape suffixes: T tokens, I in_features, O out_features, R rank.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.nf4 import BLOCK, NESTED, NF4, Update, values

BYTES = 1024  # of a program of dequantize_nf4; its blocks share one nested absmax
TILE_O = 16  # output features of a program of nf4_matmul: the smallest that tl.dot takes, for the most programs
COMMON: dict[str, Any] = {"BLOCK": BLOCK, "NESTED": NESTED, "enable_fp_fusion": False}


@triton.jit
def _absmax_at(block, mask, absmax_ptr, nested_ptr, map_ptr, offset, NESTED: tl.constexpr):
    """The absmax of blocks given by number."""
    code = tl.load(absmax_ptr + block, mask, other=0).to(tl.int32)
    return tl.load(map_ptr + code) * tl.load(nested_ptr + block // NESTED, mask, other=0.0) + offset


@triton.jit
def write_dense(
    program,
    packed_ptr,
    absmax_ptr,
    nested_ptr,
    map_ptr,
    values_ptr,
    out_ptr,
    offset,
    nbytes,
    count,
    width,
    stride,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    BYTES: tl.constexpr,
):
    """``BYTES`` bytes: rows of ``width`` weights to rows ``stride`` apart; WHOLE: ``width`` is a multiple of BLOCK."""
    BLOCKS: tl.constexpr = 2 * BYTES // BLOCK
    byte = program.to(tl.int64) * BYTES + tl.arange(0, BYTES)
    pair = tl.load(packed_ptr + byte, byte < nbytes, other=0).to(tl.int32)
    value = tl.interleave(tl.load(values_ptr + (pair >> 4)), tl.load(values_ptr + (pair & 15)))
    block = program * BLOCKS + tl.arange(0, BLOCKS)  # less than 2^31 up to 10^11 weights
    code = tl.load(absmax_ptr + block, block.to(tl.int64) * BLOCK < count, other=0).to(tl.int32)
    absmax = tl.load(map_ptr + code) * tl.load(nested_ptr + program * BLOCKS // NESTED) + offset
    weight = tl.reshape(value, (BLOCKS, BLOCK)) * absmax[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    mask = block.to(tl.int64)[:, None] * BLOCK + lane < count
    if WHOLE:
        row = block // (width // BLOCK)
        place = row.to(tl.int64)[:, None] * stride + (block - row * (width // BLOCK))[:, None] * BLOCK + lane
    else:
        flat = block.to(tl.int64)[:, None] * BLOCK + lane
        place = flat // width * stride + flat % width
    tl.store(out_ptr + place, weight.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _dequantize(
    packed_ptr,
    absmax_ptr,
    nested_ptr,
    map_ptr,
    values_ptr,
    out_ptr,
    offset,
    nbytes,
    count,
    width,
    stride,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    BYTES: tl.constexpr,
):
    program = tl.program_id(0)
    write_dense(
        program,
        packed_ptr,
        absmax_ptr,
        nested_ptr,
        map_ptr,
        values_ptr,
        out_ptr,
        offset,
        nbytes,
        count,
        width,
        stride,
        WHOLE,
        BLOCK,
        NESTED,
        BYTES,
    )


@triton.jit
def _weights_at(
    place, mask, packed_ptr, absmax_ptr, nested_ptr, map_ptr, values_ptr, offset, BLOCK: tl.constexpr, NESTED: tl.constexpr
):
    """Weights given by number, each from its own byte."""
    byte = tl.load(packed_ptr + place // 2, mask, other=0).to(tl.int32)
    code = tl.where(place % 2 == 0, byte >> 4, byte & 15)
    absmax = _absmax_at(place // BLOCK, mask, absmax_ptr, nested_ptr, map_ptr, offset, NESTED)
    return tl.load(values_ptr + code) * absmax


@triton.jit
def _matmul(
    x_ptr,
    packed_ptr,
    absmax_ptr,
    nested_ptr,
    map_ptr,
    values_ptr,
    y_ptr,
    xA_ptr,
    B_ptr,
    bias_ptr,
    offset,
    scale,
    tokens,
    inputs,
    outputs,
    rank,
    x_stride,
    y_stride,
    xA_stride,
    B_stride,
    HAS_ADAPTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_R: tl.constexpr,
):
    out = tl.program_id(0).to(tl.int64) * TILE_O + tl.arange(0, TILE_O)
    row = tl.program_id(1).to(tl.int64) * TILE_T + tl.arange(0, TILE_T)
    acc = tl.zeros((TILE_T, TILE_O), dtype=tl.float32)
    half = tl.arange(0, BLOCK // 2)
    dtype = x_ptr.dtype.element_ty
    if HAS_ADAPTER:
        for start in range(0, rank, TILE_R):
            r = start + tl.arange(0, TILE_R)
            xA = tl.load(
                xA_ptr + row[:, None] * xA_stride + r[None, :], (row[:, None] < tokens) & (r[None, :] < rank), other=0.0
            )
            B = tl.load(B_ptr + out[None, :] * B_stride + r[:, None], (out[None, :] < outputs) & (r[:, None] < rank), other=0.0)
            acc = tl.dot(xA, B.to(dtype), acc, input_precision="ieee")
        acc *= scale
    for start in range(0, inputs, BLOCK):
        even, odd = start + 2 * half, start + 2 * half + 1
        col = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + col, (row[:, None] < tokens) & (col < inputs), other=0.0)
        x_even, x_odd = tl.split(tl.reshape(x, (TILE_T, BLOCK // 2, 2)))  # one load of neighbours, not two of every other
        place = out[None, :] * inputs + even[:, None]
        live = out[None, :] < outputs
        if ALIGNED:
            absmax = _absmax_at((out * inputs + start) // BLOCK, out < outputs, absmax_ptr, nested_ptr, map_ptr, offset, NESTED)
            pair = tl.load(packed_ptr + place // 2, live, other=0).to(tl.int32)
            w_even = tl.load(values_ptr + (pair >> 4)) * absmax[None, :]
            w_odd = tl.load(values_ptr + (pair & 15)) * absmax[None, :]
        else:
            mask = live & (even[:, None] < inputs)
            w_even = _weights_at(place, mask, packed_ptr, absmax_ptr, nested_ptr, map_ptr, values_ptr, offset, BLOCK, NESTED)
            mask = live & (odd[:, None] < inputs)
            w_odd = _weights_at(place + 1, mask, packed_ptr, absmax_ptr, nested_ptr, map_ptr, values_ptr, offset, BLOCK, NESTED)
        acc = tl.dot(x_even, w_even.to(dtype), acc, input_precision="ieee")
        acc = tl.dot(x_odd, w_odd.to(dtype), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + out, out < outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + row[:, None] * y_stride + out[None, :], acc.to(dtype), (row[:, None] < tokens) & (out[None, :] < outputs))


def dequantize_nf4(q: NF4, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """See ``tunesmith.kernels.nf4.dequantize_nf4``; fp32, fp16 or bf16."""
    assert dtype != torch.float64
    if out is None:
        out = torch.empty(q.shape, dtype=dtype, device=q.packed.device)
    assert out.shape == q.shape and out.dtype == dtype
    width = stride = BLOCK  # what lies in one piece has rows of any width
    if not out.is_contiguous():
        rows = out.view(-1, out.shape[-1])
        assert rows.stride(1) == 1, out.stride()
        width, stride = rows.shape[1], rows.stride(0)
    tensors = (q.packed, q.absmax, q.nested_absmax, q.nested_map, values(q.packed.device), out)
    sizes = (len(q.packed), q.numel(), width, stride)
    grid, tiles = (triton.cdiv(len(q.packed), BYTES),), {"WHOLE": width % BLOCK == 0, "BYTES": BYTES, **COMMON}
    _dequantize[grid](*tensors, q.offset, *sizes, **tiles)
    return out


def nf4_matmul(
    x_TI: Tensor, q: NF4, update: Update | None = None, bias_O: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """See ``tunesmith.kernels.nf4.nf4_matmul``; x in fp32, fp16 or bf16."""
    (tokens, inputs), (outputs, _) = x_TI.shape, q.shape
    assert x_TI.dtype != torch.float64 and x_TI.stride(1) == 1 and q.shape == (outputs, inputs)
    y_TO = x_TI.new_empty(tokens, outputs) if out is None else out
    assert y_TO.shape == (tokens, outputs) and y_TO.stride(1) == 1, (y_TO.shape, y_TO.stride())
    xA_TR, B_OR, scale = (x_TI, x_TI, 0.0) if update is None else update
    assert xA_TR.stride(1) == 1 and B_OR.stride(1) == 1 and xA_TR.dtype == x_TI.dtype, (xA_TR.stride(), B_OR.stride())
    rank = 0 if update is None else B_OR.shape[1]
    tile_T = min(max(triton.next_power_of_2(tokens), 16), 64)
    tiles = {"TILE_T": tile_T, "TILE_O": TILE_O, "TILE_R": 16 if rank <= 16 else 32}
    which = {"ALIGNED": inputs % BLOCK == 0, "HAS_ADAPTER": rank > 0, "HAS_BIAS": bias_O is not None}
    tensors = (x_TI, q.packed, q.absmax, q.nested_absmax, q.nested_map, values(x_TI.device), y_TO)
    added = (xA_TR, B_OR, x_TI if bias_O is None else bias_O)
    strides = (x_TI.stride(0), y_TO.stride(0), xA_TR.stride(0), B_OR.stride(0))
    if tokens:
        grid = (triton.cdiv(outputs, TILE_O), triton.cdiv(tokens, tile_T))
        sizes = (tokens, inputs, outputs, rank)
        _matmul[grid](*tensors, *added, q.offset, float(scale), *sizes, *strides, **which, **tiles, **COMMON)
    return y_TO
