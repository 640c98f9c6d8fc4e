"""RMSNorm in Triton; the specification is ``tunesmith/kernels/rms_norm.py``.

The operation is bound by memory, so what counts is that every element is read and written once: a whole row fits one
tile, the mean square is taken from registers, and the residual sum rides along in the same visit. A tile holds several
rows where they are short (the norms of single heads, K = 64 to 256, come by the hundred thousand): one program a row
would start more programs than it moves data. The backward pass needs no second kernel for the weight, which is frozen.

Refused: a loop over parts of a row. Up to 32,768 features fit the registers of one program.

Shape suffixes: T tokens, D hidden size (any number of features).
"""

# Triton's types do not say how a kernel is launched: keywords, numbers for constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements of a tile of short rows
LONGEST = 32768  # features of a row


@triton.jit
def _forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    sum_ptr,
    y_ptr,
    rstd_ptr,
    T,
    D,
    x_stride,
    residual_stride,
    eps,
    offset,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < T) & (col < D)
    x = tl.load(x_ptr + row * x_stride + col, mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row * residual_stride + col, mask, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * D + col, rounded, mask)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / D + eps)
    weight = tl.load(weight_ptr + col, col < D, other=0.0).to(tl.float32) + offset
    tl.store(y_ptr + row * D + col, (x * rstd * weight).to(y_ptr.dtype.element_ty), mask)
    tl.store(rstd_ptr + row, rstd, row < T)


@triton.jit
def _backward(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    T,
    D,
    dy_stride,
    x_stride,
    offset,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < T) & (col < D)
    x = tl.load(x_ptr + row * x_stride + col, mask, other=0.0).to(tl.float32)
    g = tl.load(dy_ptr + row * dy_stride + col, mask, other=0.0).to(tl.float32)
    g *= tl.load(weight_ptr + col, col < D, other=0.0).to(tl.float32) + offset
    rstd = tl.load(rstd_ptr + row, row < T, other=0.0)
    normed = x * rstd
    dx = rstd * (g - normed * (tl.sum(g * normed, 1, keep_dims=True) / D))
    tl.store(dx_ptr + row * D + col, dx.to(dx_ptr.dtype.element_ty), mask)


def _launch(x_TD: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Grid and block sizes for rows of this length."""
    T, D = x_TD.shape
    assert D <= LONGEST and x_TD.dtype != torch.float64 and x_TD.stride(1) == 1, (x_TD.shape, x_TD.dtype, x_TD.stride())
    block = triton.next_power_of_2(D)
    rows = max(1, TILE // block)
    return (triton.cdiv(T, rows),), {"ROWS": rows, "BLOCK": block, "num_warps": min(16, max(4, block // 512))}


def rms_norm_forward(x_TD: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """As ``tunesmith.kernels.rms_norm.rms_norm_forward``: ``(y_TD, rstd_T)``."""
    grid, blocks = _launch(x_TD)
    T, D = x_TD.shape
    y_TD = torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device)
    rstd_T = torch.empty(T, dtype=torch.float32, device=x_TD.device)
    strides = (x_TD.stride(0), x_TD.stride(0))
    if T:
        _forward[grid](x_TD, x_TD, weight_D, y_TD, y_TD, rstd_T, T, D, *strides, eps, offset, ADD=False, **blocks)
    return y_TD, rstd_T


def add_rms_norm_forward(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``tunesmith.kernels.rms_norm.add_rms_norm_forward``: ``(sum_TD, y_TD, rstd_T)``."""
    grid, blocks = _launch(x_TD)
    assert residual_TD.shape == x_TD.shape and residual_TD.stride(1) == 1, (residual_TD.shape, residual_TD.stride())
    T, D = x_TD.shape
    sum_TD, y_TD = (torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device) for _ in range(2))
    rstd_T = torch.empty(T, dtype=torch.float32, device=x_TD.device)
    strides = (x_TD.stride(0), residual_TD.stride(0))
    if T:
        _forward[grid](x_TD, residual_TD, weight_D, sum_TD, y_TD, rstd_T, T, D, *strides, eps, offset, ADD=True, **blocks)
    return sum_TD, y_TD, rstd_T


def rms_norm_backward(dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, offset: float = 0.0) -> Tensor:
    """As ``tunesmith.kernels.rms_norm.rms_norm_backward``: dx, shape (T, D)."""
    grid, blocks = _launch(x_TD)
    assert dy_TD.shape == x_TD.shape and dy_TD.stride(1) == 1, (dy_TD.shape, dy_TD.stride())
    T, D = x_TD.shape
    dx_TD = torch.empty((T, D), dtype=dy_TD.dtype, device=x_TD.device)
    if T:
        _backward[grid](dy_TD, x_TD, weight_D, rstd_T, dx_TD, T, D, dy_TD.stride(0), x_TD.stride(0), offset, **blocks)
    return dx_TD
