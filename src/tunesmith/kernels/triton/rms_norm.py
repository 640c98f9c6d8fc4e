"""RMSNorm in Triton; the specification is ``tunesmith/kernels/rms_norm.py``.

The operation is bound by memory, so what counts is that every element is read and written once: a whole row fits one
tile, the mean square is taken from registers, and the residual sum rides along in the same visit. A tile holds several
rows where they are short (the norms of single heads, K = 64 to 256, come by the hundred thousand): one program a row
would start more programs than it moves data. The backward pass needs no second kernel for the weight, which is frozen.

Heads are rows too: of (T, X, D) the rows of one token lie one stride apart and those of the next another, so that the norms
of q and k read the columns that the product wrote, and their gradients go where the next product reads them.

Refused: a loop over parts of a row. Up to 16,384 features fit the registers of one program (the widest model has so many).

Shape suffixes: T tokens, D hidden size (any number of features); here: X is H or G.
"""

# Triton's types do not say how a kernel is launched: keywords, numbers for constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements of a tile of short rows
LONGEST = 16384  # features of a row


@triton.jit
def _forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    sum_ptr,
    y_ptr,
    rstd_ptr,
    T,
    X,
    D,
    x_stride_T,
    x_stride_X,
    residual_stride,
    y_stride_T,
    y_stride_X,
    eps,
    offset,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    token, head = row // X, row % X
    col = tl.arange(0, BLOCK)[None, :]
    mask = (token < T) & (col < D)
    x = tl.load(x_ptr + token * x_stride_T + head * x_stride_X + col, mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row * residual_stride + col, mask, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * D + col, rounded, mask)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / D + eps)
    weight = tl.load(weight_ptr + col, col < D, other=0.0).to(tl.float32) + offset
    y_ptr += token * y_stride_T + head * y_stride_X + col
    tl.store(y_ptr, (x * rstd * weight).to(y_ptr.dtype.element_ty), mask)
    tl.store(rstd_ptr + row, rstd, token < T)


@triton.jit
def _backward(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    T,
    X,
    D,
    dy_stride_T,
    dy_stride_X,
    x_stride_T,
    x_stride_X,
    dx_stride_T,
    dx_stride_X,
    offset,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    token, head = row // X, row % X
    col = tl.arange(0, BLOCK)[None, :]
    mask = (token < T) & (col < D)
    x = tl.load(x_ptr + token * x_stride_T + head * x_stride_X + col, mask, other=0.0).to(tl.float32)
    g = tl.load(dy_ptr + token * dy_stride_T + head * dy_stride_X + col, mask, other=0.0).to(tl.float32)
    g *= tl.load(weight_ptr + col, col < D, other=0.0).to(tl.float32) + offset
    rstd = tl.load(rstd_ptr + row, token < T, other=0.0)
    normed = x * rstd
    dx = rstd * (g - normed * (tl.sum(g * normed, 1, keep_dims=True) / D))
    dx_ptr += token * dx_stride_T + head * dx_stride_X + col
    tl.store(dx_ptr, dx.to(dx_ptr.dtype.element_ty), mask)


def _launch(x: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Grid and block sizes for rows of this length."""
    D = x.shape[-1]
    assert D <= LONGEST and x.dtype != torch.float64 and x.stride(-1) == 1, (x.shape, x.dtype, x.stride())
    block = triton.next_power_of_2(D)
    rows = max(1, TILE // block)
    return (triton.cdiv(x[..., 0].numel(), rows),), {
        "ROWS": rows,
        "BLOCK": block,
        "num_warps": min(16, max(4, block // 512)),
    }


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """T, X and D."""
    return x.shape[0], x.shape[1] if x.ndim == 3 else 1, x.shape[-1]


def _strides(x: Tensor, like: Tensor) -> tuple[int, int]:
    """From token to token and from head to head."""
    assert x.shape == like.shape and x.stride(-1) == 1, (x.shape, x.stride(), like.shape)
    return x.stride(0), x.stride(1) if x.ndim == 3 else 0


def rms_norm_forward(
    x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As ``tunesmith.kernels.rms_norm.rms_norm_forward``: ``(y, rstd)``."""
    grid, blocks = _launch(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    rstd = torch.empty(x.shape[:-1].numel(), dtype=torch.float32, device=x.device)
    strides = (*_strides(x, x), 0, *_strides(y, x))
    if grid[0]:
        _forward[grid](x, x, weight_D, y, y, rstd, *_sizes(x), *strides, eps, offset, ADD=False, **blocks)
    return y, rstd


def add_rms_norm_forward(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``tunesmith.kernels.rms_norm.add_rms_norm_forward``: ``(sum_TD, y_TD, rstd_T)``."""
    grid, blocks = _launch(x_TD)
    T, D = x_TD.shape
    sum_TD, y_TD = (torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device) for _ in range(2))
    rstd_T = torch.empty(T, dtype=torch.float32, device=x_TD.device)
    strides = (*_strides(x_TD, x_TD), _strides(residual_TD, x_TD)[0], *_strides(y_TD, x_TD))
    if T:
        tensors = (x_TD, residual_TD, weight_D, sum_TD, y_TD, rstd_T)
        _forward[grid](*tensors, *_sizes(x_TD), *strides, eps, offset, ADD=True, **blocks)
    return sum_TD, y_TD, rstd_T


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight_D: Tensor, rstd: Tensor, offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """As ``tunesmith.kernels.rms_norm.rms_norm_backward``: dx, in the shape of x."""
    grid, blocks = _launch(x)
    dx = torch.empty(x.shape, dtype=dy.dtype, device=x.device) if out is None else out
    strides = (*_strides(dy, x), *_strides(x, x), *_strides(dx, x))
    if grid[0]:
        _backward[grid](dy, x, weight_D, rstd, dx, *_sizes(x), *strides, offset, **blocks)
    return dx
