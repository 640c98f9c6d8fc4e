"""Rotary position embedding in place: every pair of features of a head is turned by an angle that grows with position.

RoPE (Su et al. 2021, section 3.2.2) in the half-split convention: feature i is paired with feature i + K/2, as in
transformers' ``rotate_half``, and not with its neighbour as in the paper. With cosines narrower than the head only the
first ``cos.shape[-1]`` features are turned (partial rotary); the rest passes untouched.

A rotation is its own record: the backward pass turns the gradient by the negative angle (``inverse=True``), so that
nothing is saved but the cosines and sines which all layers share. Queries and keys are turned where they lie, in a
strided view of the projection's output; the stock formula makes four tensors of their size.

One core, 1,500 x 9 x 64, milliseconds, fp32 / bf16: stock 0.72 / 0.64, this 0.41 / 0.52. Refused: complex
multiplication (1.6), and rounding after every product in bf16, which is slower than a visit to fp32 as well as coarser.

On a GPU the function of the same name in ``kernels/triton/rope.py`` runs instead.

Shape suffixes: T tokens, H query heads (or key heads), K head dimension (the cosines' may be smaller).
"""

import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu


def rope_(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor, inverse: bool = False, out: Tensor | None = None) -> Tensor:
    """Turn the heads of every token in place, or into another tensor.

    Args:
        x_THK: queries, keys or their gradient, shape (T, H, K), fp32, bf16 or fp16 (fp64 off the GPU); a view with any
            strides over T and H, last dimension contiguous.
        cos_TK: shape (T, R) with R <= K even; the two halves are equal, as transformers makes them, and only the first
            is read. Any floating dtype; rows may be strided.
        sin_TK: likewise.
        inverse: turn back: the backward pass.
        out: shape and dtype of x, to be written in its place; any strides over T and H.

    Returns:
        ``x_THK`` itself, or ``out``. The arithmetic is fp32 with one rounding (fp64 for fp64).
    """
    width = cos_TK.shape[-1]
    assert width % 2 == 0 and width <= x_THK.shape[-1] and cos_TK.shape == sin_TK.shape, (cos_TK.shape, x_THK.shape)
    if x_THK.is_cuda:
        return on_gpu.rope_(x_THK, cos_TK, sin_TK, inverse, out)
    if out is not None:
        return rope_(out.copy_(x_THK), cos_TK, sin_TK, inverse)
    half, wide = width // 2, torch.promote_types(x_THK.dtype, torch.float32)
    turned_THK = x_THK[..., :width]
    work_THK = turned_THK.to(wide)  # x itself where it is wide already
    cos_T1K, sin_T1K = cos_TK[:, None, :half].to(wide), sin_TK[:, None, :half].to(wide)
    sign = -1 if inverse else 1
    first_THK, second_THK = work_THK[..., :half], work_THK[..., half:]
    crossed_THK = first_THK * sin_T1K
    first_THK.mul_(cos_T1K).addcmul_(second_THK, sin_T1K, value=-sign)
    second_THK.mul_(cos_T1K).add_(crossed_THK, alpha=sign)
    if work_THK is not turned_THK:
        turned_THK.copy_(work_THK)
    return x_THK
