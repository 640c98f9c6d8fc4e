"""The r-wide products of a group of adapters in Triton; what they compute is written out in ``layers/lora.py``.

A product with 16 columns costs as much as reading its wide operand, so what a kernel is bound by is how often that is read and
written, and a small model by how many kernels there are. Three of them serve all adapters of a group:

* ``project``: ``[x | drop(x) A^T]`` in one pass over x. The mask is drawn where x is multiplied, and the narrow product is
  written twice, beside x for the wide product and by itself for the backward pass. A library's product would read a dropped
  copy, and another pass would put its result in place.
* ``add_update_``: ``dx += drop(dxA A)``, in the pass that writes dx. The product is never in memory.
* ``adapter_gradients``: those of A and of B of all layers, one launch. Both sum over tokens, a wide operand times a narrow one,
  so a program has some columns of x or of dy and goes down all tokens; x is normed and dropped again where it is read. Each
  element is one program's sum in one order: two runs give the same bits, and nothing is added by two programs.

Refused: the norm in ``project`` (the reciprocal of the root mean square is known after the last column, so a second pass would
read x from the cache), and parts of the sum over tokens (a second launch adds them up). Tile sizes follow from the shape, and
have not been tuned on any device.

Shape suffixes: T tokens, I in_features, M outputs of a group, O out_features, R rank, S ranks of a group, Z features and ranks.
"""

# Triton's types do not say how a kernel is launched, nor that a kernel may call another.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.triton.dropout import drawn_bits

LAYERS = 3  # of a group, at most
NARROWEST = 16  # columns of an operand of tl.dot
Dropped = tuple[int, int, int]  # seed, threshold and first row of a mask; a threshold of 0 drops nothing


@triton.jit(do_not_specialize=["seed", "threshold", "first_row"])
def _project(
    x_ptr,
    A_ptr,
    z_ptr,
    xA_ptr,
    seed,
    threshold,
    first_row,
    tokens,
    inputs,
    ranks,
    x_stride,
    z_stride,
    COPIES: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    s = tl.arange(0, BLOCK_S)
    acc = tl.zeros((BLOCK_T, BLOCK_S), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_I):
        col = start + tl.arange(0, BLOCK_I)
        mask = (row[:, None] < tokens) & (col[None, :] < inputs)
        x = tl.load(x_ptr + row[:, None] * x_stride + col[None, :], mask, other=0.0)
        if COPIES:
            tl.store(z_ptr + row[:, None] * z_stride + col[None, :], x, mask)
        if DROPS:
            eight = start // 8 + tl.arange(0, BLOCK_I // 8)
            x = tl.where(drawn_bits(seed, row[:, None] + first_row, eight[None, :]) >= threshold, x, 0.0)
        A = tl.load(A_ptr + s[:, None] * inputs + col[None, :], (s[:, None] < ranks) & (col[None, :] < inputs), other=0.0)
        acc = tl.dot(x, tl.trans(A), acc, input_precision="ieee")
    xA = acc.to(xA_ptr.dtype.element_ty)
    mask = (row[:, None] < tokens) & (s[None, :] < ranks)
    tl.store(xA_ptr + row[:, None] * ranks + s[None, :], xA, mask)
    tl.store(z_ptr + row[:, None] * z_stride + inputs + s[None, :], xA, mask)


@triton.jit(do_not_specialize=["seed", "threshold", "first_row"])
def _add_update(
    dx_ptr,
    dxA_ptr,
    A_ptr,
    seed,
    threshold,
    first_row,
    tokens,
    inputs,
    ranks,
    dx_stride,
    dxA_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    col = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = (row[:, None] < tokens) & (col[None, :] < inputs)
    acc = tl.zeros((BLOCK_T, BLOCK_I), dtype=tl.float32)
    for start in range(0, ranks, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        dxA = tl.load(
            dxA_ptr + row[:, None] * dxA_stride + s[None, :], (row[:, None] < tokens) & (s[None, :] < ranks), other=0.0
        )
        A = tl.load(A_ptr + s[:, None] * inputs + col[None, :], (s[:, None] < ranks) & (col[None, :] < inputs), other=0.0)
        acc = tl.dot(dxA, A, acc, input_precision="ieee")
    eight = tl.program_id(1) * (BLOCK_I // 8) + tl.arange(0, BLOCK_I // 8)
    acc = tl.where(drawn_bits(seed, row[:, None] + first_row, eight[None, :]) >= threshold, acc, 0.0)
    place = dx_ptr + row[:, None] * dx_stride + col[None, :]
    acc += tl.load(place, mask, other=0.0).to(tl.float32)
    tl.store(place, acc.to(dx_ptr.dtype.element_ty), mask)


@triton.jit
def _gradient_A_of_tile(
    tile,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dxA_ptr,
    dA_ptr,
    seed,
    threshold,
    first_row,
    offset,
    tokens,
    inputs,
    ranks,
    x_stride,
    dxA_stride,
    NORMS: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """``dxA^T drop(norm(x))`` of some columns of x."""
    col = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.arange(0, BLOCK_S)
    acc = tl.zeros((BLOCK_S, BLOCK_C), dtype=tl.float32)
    if NORMS:
        weight = tl.load(weight_ptr + col, col < inputs, other=0.0).to(tl.float32) + offset
    for start in range(0, tokens, BLOCK_T):
        token = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        row = token[:, None]
        x = tl.load(x_ptr + row * x_stride + col[None, :], (row < tokens) & (col[None, :] < inputs), other=0.0)
        if NORMS:
            rstd = tl.load(rstd_ptr + token, token < tokens, other=0.0)
            x = (x.to(tl.float32) * rstd[:, None] * weight[None, :]).to(x.dtype)
        if DROPS:
            eight = tile * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
            x = tl.where(drawn_bits(seed, row + first_row, eight[None, :]) >= threshold, x, 0.0)
        dxA = tl.load(dxA_ptr + row * dxA_stride + s[None, :], (row < tokens) & (s[None, :] < ranks), other=0.0)
        acc = tl.dot(tl.trans(dxA), x, acc, input_precision="ieee")
    place = dA_ptr + s[:, None].to(tl.int64) * inputs + col[None, :]
    tl.store(place, acc.to(dA_ptr.dtype.element_ty), (s[:, None] < ranks) & (col[None, :] < inputs))


@triton.jit
def _gradient_B_of_tile(
    tile,
    dy_ptr,
    xA_ptr,
    dB_ptr,
    tokens,
    outputs,
    rank,
    dy_stride,
    xA_stride,
    scale,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """``scale * dy^T xA`` of some outputs of a layer."""
    col = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_C, BLOCK_R), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        row = (start + tl.arange(0, BLOCK_T)).to(tl.int64)[:, None]
        dy = tl.load(dy_ptr + row * dy_stride + col[None, :], (row < tokens) & (col[None, :] < outputs), other=0.0)
        xA = tl.load(xA_ptr + row * xA_stride + r[None, :], (row < tokens) & (r[None, :] < rank), other=0.0)
        acc = tl.dot(tl.trans(dy), xA, acc, input_precision="ieee")
    place = dB_ptr + col[:, None].to(tl.int64) * rank + r[None, :]
    tl.store(place, (acc * scale).to(dB_ptr.dtype.element_ty), (col[:, None] < outputs) & (r[None, :] < rank))


@triton.jit(do_not_specialize=["seed", "threshold", "first_row"])
def _gradients(
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dy_ptr,
    xA_ptr,
    dxA_ptr,
    dA_ptr,
    dB_ptr,
    seed,
    threshold,
    first_row,
    offset,
    tokens,
    inputs,
    x_stride,
    dy_stride,
    xA_stride,
    dxA_stride,
    O_0,
    O_1,
    O_2,
    R_0,
    R_1,
    R_2,
    scale_0,
    scale_1,
    scale_2,
    NORMS: tl.constexpr,
    DROPS: tl.constexpr,
    EIGHTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    program = tl.program_id(0)
    tiles_of_x, ranks = tl.cdiv(inputs, BLOCK_C), R_0 + R_1 + R_2
    if EIGHTS:  # multiples of eight, which the launcher does not tell: loads of 16 bytes
        ranks, dxA_stride, xA_stride = ranks // 8 * 8, dxA_stride // 8 * 8, xA_stride // 8 * 8
    if program < tiles_of_x:
        _gradient_A_of_tile(
            program,
            x_ptr,
            weight_ptr,
            rstd_ptr,
            dxA_ptr,
            dA_ptr,
            seed,
            threshold,
            first_row,
            offset,
            tokens,
            inputs,
            ranks,
            x_stride,
            dxA_stride,
            NORMS,
            DROPS,
            BLOCK_T,
            BLOCK_C,
            BLOCK_S,
        )
    else:
        tile, end_0 = program - tiles_of_x, tl.cdiv(O_0, BLOCK_C)
        end_1 = end_0 + tl.cdiv(O_1, BLOCK_C)
        second, third = (tile >= end_0) & (tile < end_1), tile >= end_1
        tile -= tl.where(third, end_1, tl.where(second, end_0, 0))
        outputs = tl.where(third, O_2, tl.where(second, O_1, O_0))
        rank = tl.where(third, R_2, tl.where(second, R_1, R_0))
        scale = tl.where(third, scale_2, tl.where(second, scale_1, scale_0))
        out = tl.where(third, O_0 + O_1, tl.where(second, O_0, 0))
        r = tl.where(third, R_0 + R_1, tl.where(second, R_0, 0))
        place = tl.where(third, O_0 * R_0 + O_1 * R_1, tl.where(second, O_0 * R_0, 0))
        if EIGHTS:
            rank, r = rank // 8 * 8, r // 8 * 8
        dy_ptr, xA_ptr, dB_ptr = dy_ptr + out, xA_ptr + r, dB_ptr + place
        _gradient_B_of_tile(
            tile, dy_ptr, xA_ptr, dB_ptr, tokens, outputs, rank, dy_stride, xA_stride, scale, BLOCK_T, BLOCK_C, BLOCK_R
        )


def _narrow(columns: int) -> int:
    return max(NARROWEST, triton.next_power_of_2(columns))


def _check(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert tensor.stride(-1) == 1 and tensor.dtype == tensors[0].dtype != torch.float64, (tensor.stride(), tensor.dtype)


def project(x_TI: Tensor, A_SI: Tensor, x_TZ: Tensor, dropped: Dropped) -> Tensor:
    """``[x | drop(x) A^T]`` into ``x_TZ``, and the narrow product by itself.

    Args:
        x_TI: fp32, fp16 or bf16; where it is the first columns of ``x_TZ`` it is not written again.
        A_SI: contiguous, dtype of x.
        x_TZ: to be written, Z = I + S.
        dropped: of the mask.

    Returns:
        Shape (T, S), contiguous, dtype of x.
    """
    (tokens, inputs), ranks = x_TI.shape, len(A_SI)
    _check(x_TI, A_SI, x_TZ)
    assert A_SI.is_contiguous() and x_TZ.shape == (tokens, inputs + ranks), (A_SI.stride(), x_TZ.shape)
    copies = x_TI.data_ptr() != x_TZ.data_ptr()
    xA_TS = x_TI.new_empty(tokens, ranks)
    if not ranks:
        if copies:
            x_TZ.copy_(x_TI)
        return xA_TS
    block = _narrow(ranks)
    wide = 128 if x_TI.element_size() == 2 and block <= 64 else 64 if x_TI.element_size() == 2 or block == 16 else 32
    tiles = {"BLOCK_T": 16, "BLOCK_I": wide, "BLOCK_S": block}
    if tokens:
        sizes = (tokens, inputs, ranks, x_TI.stride(0), x_TZ.stride(0))
        _project[(triton.cdiv(tokens, 16),)](
            x_TI, A_SI, x_TZ, xA_TS, *dropped, *sizes, COPIES=copies, DROPS=dropped[1] > 0, **tiles
        )
    return xA_TS


def add_update_(dx_TI: Tensor, dxA_TS: Tensor, A_SI: Tensor, dropped: Dropped) -> Tensor:
    """``dx + drop(dxA A)``, the product in fp32 and the sum rounded once, written to ``dx_TI``.

    Args:
        dx_TI: fp32, fp16 or bf16.
        dxA_TS: dtype of dx.
        A_SI: contiguous, dtype of dx.
        dropped: of the mask.
    """
    (tokens, inputs), ranks = dx_TI.shape, len(A_SI)
    _check(dx_TI, dxA_TS, A_SI)
    assert A_SI.is_contiguous() and dxA_TS.shape == (tokens, ranks), (A_SI.stride(), dxA_TS.shape)
    if tokens and ranks:
        sizes = (tokens, inputs, ranks, dx_TI.stride(0), dxA_TS.stride(0))
        tiles = {"BLOCK_T": 64, "BLOCK_I": 64, "BLOCK_S": min(_narrow(ranks), 64)}
        _add_update[(triton.cdiv(tokens, 64), triton.cdiv(inputs, 64))](dx_TI, dxA_TS, A_SI, *dropped, *sizes, **tiles)
    return dx_TI


def adapter_gradients(
    dy_TM: Tensor,
    x_TI: Tensor,
    xA_TS: Tensor,
    dxA_TS: Tensor,
    layers: Sequence[tuple[int, int, float]],
    dtype: torch.dtype,
    dropped: Dropped,
    norm: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """``dxA^T drop(norm(x))``, and of each layer ``scale * dy^T xA``.

    Args:
        dy_TM: outputs of the layers side by side; fp32, fp16 or bf16.
        x_TI: before norm and dropout, dtype of dy.
        xA_TS: ranks of the layers side by side, and maybe more columns; dtype of dy.
        dxA_TS: likewise.
        layers: outputs, rank and scale of each, three at most.
        dtype: of the results.
        dropped: of the mask.
        norm: weight, ``1 / rms`` of each row, and what is added to the weight.

    Returns:
        The gradients of all A under each other, shape (S, I), and that of each B, shape (O, R); contiguous.
    """
    _check(dy_TM, x_TI, xA_TS, dxA_TS)
    (tokens, inputs), ranks = x_TI.shape, sum(rank for _, rank, _ in layers)
    assert len(layers) <= LAYERS, f"a group of {len(layers)} layers"
    room = torch.empty(ranks * inputs + sum(outputs * rank for outputs, rank, _ in layers), dtype=dtype, device=x_TI.device)
    dA_SI, all_dB = room[: ranks * inputs].view(ranks, inputs), room[ranks * inputs :]
    parts = all_dB.split([outputs * rank for outputs, rank, _ in layers])
    dB = [part.view(outputs, rank) for part, (outputs, rank, _) in zip(parts, layers, strict=True)]
    if not ranks:
        return dA_SI, dB
    weight_I, rstd_T, offset = (x_TI, x_TI, 0.0) if norm is None else norm
    filled = [*layers, *[(0, 0, 0.0)] * (LAYERS - len(layers))]
    outputs, all_ranks, scales = zip(*filled, strict=True)
    block = _narrow(ranks)
    tiles: dict[str, Any] = {"BLOCK_T": 16 if x_TI.element_size() == 4 else 64 if block <= 64 else 32, "BLOCK_C": 64}
    tiles |= {"BLOCK_S": block, "BLOCK_R": _narrow(max(all_ranks)), "num_warps": 8 if block > 64 else 4}
    _gradients[(triton.cdiv(inputs, 64) + sum(triton.cdiv(n, 64) for n in outputs),)](
        *(x_TI, weight_I, rstd_T, dy_TM, xA_TS, dxA_TS, dA_SI, all_dB),
        *dropped,
        float(offset),
        *(tokens, inputs, x_TI.stride(0), dy_TM.stride(0), xA_TS.stride(0), dxA_TS.stride(0)),
        *outputs,
        *all_ranks,
        *map(float, scales),
        NORMS=norm is not None,
        DROPS=dropped[1] > 0,
        EIGHTS=all(number % 8 == 0 for number in (*all_ranks, xA_TS.stride(0), dxA_TS.stride(0))),
        **tiles,
    )
    return dA_SI, dB
