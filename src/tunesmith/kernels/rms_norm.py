"""RMSNorm: ``y = x / rms(x) * (offset + weight)``, with the backward pass written out by hand.

Root mean square layer normalisation (Zhang and Sennrich 2019, equation 4) divides a token by its own length and scales
every feature by a learnt weight. ``offset`` 0 is the usual convention; 1 is the one in which weights are stored as their
distance from one. The weights are frozen here (LoRA never trains them), so the only gradient is that of x:

    g = dy * (offset + weight),   dx = rstd * g - x * rstd^3 * mean(g * x)

Autograd's record of the six stock operations keeps four tensors of the size of x; here x and one fp32 number a row
(``rstd``, the reciprocal of the root mean square) are all that lives until the backward pass. The arithmetic is fp32
throughout with one rounding at the end; the stock layer rounds the normalised row before it multiplies by the weight.

The square sum is ``vector_norm``, which reads x once and writes one number a row. Measured on one core at 1,500 x 576
(milliseconds, fp32 / bf16): stock 0.36 / 0.59, ``vecdot`` 0.25 / 0.42, ATen's own ``rms_norm`` 0.31 / 0.49, this 0.22 /
0.42; at 1,500 x 2,048: 2.7 / 2.9, 1.9 / 2.4, 2.5 / 3.4, 1.3 / 1.6. Refused: working through the rows in blocks that stay
in the cache, which wins nothing in the forward pass and doubles the time of the backward pass at D = 576.

On a GPU the functions of the same names in ``kernels/triton/rms_norm.py`` run instead.

Shape suffixes: T tokens, D hidden size (any number of features); here: X is H or G.
"""

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm_forward(
    x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalise every row.

    Args:
        x: rows (T, D), or heads of tokens (T, X, D), fp32, bf16 or fp16 (fp64 off the GPU); any strides, but the last dimension
            is contiguous.
        weight_D: shape (D,), any floating dtype.
        eps: added to the mean square.
        offset: added to the weight; 1.0 for models that store ``weight - 1``.
        out: to be written, in the shape and dtype of x, strided like it.

    Returns:
        The result in the shape and dtype of x, contiguous or ``out``; and ``1 / rms`` of every row in fp32 (fp64 for fp64), one
        after another, shape (T,) or (T X,).
    """
    if x.is_cuda:
        return on_gpu.rms_norm_forward(x, weight_D, eps, offset, out)
    x_TD = x.flatten(0, -2)
    wide = _wide(x_TD.dtype)
    rstd_T = torch.linalg.vector_norm(x_TD, dim=-1, dtype=wide)
    rstd_T.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
    y_TD = torch.mul(x_TD.to(wide), rstd_T[:, None]).mul_(_scale(weight_D, wide, offset)).to(x.dtype)
    return y_TD.view(x.shape) if out is None else out.copy_(y_TD.view(x.shape)), rstd_T


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight_D: Tensor, rstd_T: Tensor, offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """The gradient with respect to x, in its shape, dtype of dy.

    Args:
        dy: incoming gradient, in the shape of x; any strides, but the last dimension is contiguous.
        x: the input of the forward pass.
        weight_D: shape (D,).
        rstd_T: as the forward pass returned it.
        offset: as in the forward pass.
        out: to be written, in the shape of x and the dtype of dy.
    """
    if x.is_cuda:
        return on_gpu.rms_norm_backward(dy, x, weight_D, rstd_T, offset, out)
    wide = _wide(x.dtype)
    x_TD = x.flatten(0, -2).to(wide)
    g_TD = torch.mul(dy.flatten(0, -2).to(wide), _scale(weight_D, wide, offset))
    pull_T = torch.linalg.vecdot(g_TD, x_TD).mul_(rstd_T).mul_(rstd_T).mul_(rstd_T).div_(-x_TD.shape[-1])
    dx = g_TD.mul_(rstd_T[:, None]).addcmul_(x_TD, pull_T[:, None]).to(dy.dtype).view(x.shape)
    return dx if out is None else out.copy_(dx)


def add_rms_norm_forward(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """``sum = x + residual``, and the norm of the sum: two visits of memory on a GPU instead of three.

    Args:
        x_TD: shape (T, D); rows may be strided.
        residual_TD: shape and dtype of x; rows may be strided.
        weight_D: shape (D,).
        eps: added to the mean square.
        offset: added to the weight.

    Returns:
        ``(sum_TD, y_TD, rstd_T)``. The sum is rounded to the dtype of x before it is normalised, as in the stock model.
    """
    if x_TD.is_cuda:
        return on_gpu.add_rms_norm_forward(x_TD, residual_TD, weight_D, eps, offset)
    sum_TD = x_TD + residual_TD
    return (sum_TD, *rms_norm_forward(sum_TD, weight_D, eps, offset))


def _scale(weight_D: Tensor, dtype: torch.dtype, offset: float) -> Tensor:
    weight_D = weight_D.to(dtype)
    return weight_D + offset if offset else weight_D


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        y, rstd_T = rms_norm_forward(_rows(x), weight_D, eps, offset)
        ctx.save_for_backward(x, weight_D, rstd_T)
        ctx.offset = offset
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight_D, rstd_T = ctx.saved_tensors
        dy = grads[0].contiguous()  # the gradient of a sum comes expanded, with strides of zero
        return rms_norm_backward(_rows(dy), _rows(x), weight_D, rstd_T, ctx.offset).view(x.shape), None, None, None


def _rows(x: Tensor) -> Tensor:
    """Two or three dimensions, copied only where there are more."""
    return x if x.ndim in (2, 3) else x.reshape(-1, x.shape[-1])


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Differentiable RMSNorm over the last dimension; saves x and one fp32 number a row.

    Args:
        x: shape (..., D), fp32, bf16 or fp16 (fp64 off the GPU).
        weight_D: frozen, shape (D,). Gets no gradient.
        eps: added to the mean square.
        offset: added to the weight.

    Returns:
        Shape and dtype of x.
    """
    assert not weight_D.requires_grad, "the weight of rms_norm is frozen: it would get no gradient"
    return _RMSNorm.apply(x, weight_D, eps, offset)  # type: ignore[return-value]
