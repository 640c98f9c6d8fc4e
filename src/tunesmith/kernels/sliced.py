"""Products with a head that is dense only a slice of its vocabulary at a time.

A head in 8 bits (``layers/int8.py``) is dequantised where it is multiplied, and a trained one in fp32
(``layers/whole_table.py``) is cast: ``SLICE`` rows at once, into a buffer that the caller's layers share. Logits of a slice go
to their columns; the gradient of the hidden states is a sum over slices, which is taken in fp32 and rounded once by the caller.
The slice is a constant, so that the order of additions follows from the shape.

Memory: ``SLICE * D`` numbers of the buffer (67 MB at D = 4,096 in 16 bits; ``layers/dense_buffer.py`` has more for weights),
and ``4 C D`` bytes for the sum, C rows at a time.

Refused: the scale of a row on the logits instead of the weights, which saves a rounding and makes every reader of the head
compute in its own way.

Shape suffixes: C rows of one chunk, D hidden size, V vocabulary, P some of the rows.
"""

from typing import Protocol

import torch
from torch import Tensor

from tunesmith.kernels.fp16_scaled_mm import OverflowRows, scaled_mm, scaled_mm_back

SLICE = 8192  # rows of the head that are dense at once


class SlicedHead(Protocol):
    """A head whose rows become dense when they are asked for.

    Attributes:
        shape: (V, D).
        in_fp16: it multiplies in fp16 what flows in fp32, rows scaled.
    """

    shape: torch.Size
    in_fp16: bool

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows, dense, valid until the next call."""
        ...


def sliced_mm(x_CD: Tensor, head: SlicedHead, out_CV: Tensor, overflow: OverflowRows | None = None) -> Tensor:
    """``x W^T`` into ``out_CV``, which may be fp32 for an x of 16 bits on a GPU."""
    half = head.in_fp16 and x_CD.dtype == torch.float32
    for start in range(0, head.shape[0], SLICE):
        W_PD = head.rows(start, min(start + SLICE, head.shape[0]), torch.float16 if half else x_CD.dtype)
        out_CP = out_CV[:, start : start + len(W_PD)]
        if half:
            scaled_mm(x_CD, W_PD, out=out_CP, overflow=overflow)
        elif out_CV.dtype != x_CD.dtype:
            torch.mm(x_CD, W_PD.T, out_dtype=out_CV.dtype, out=out_CP)
        else:
            torch.mm(x_CD, W_PD.T, out=out_CP)
    return out_CV


def sliced_mm_back(dy_CV: Tensor, head: SlicedHead, overflow: OverflowRows | None = None) -> Tensor:
    """``dy W``, shape (C, D), summed in fp32 (fp64 for fp64)."""
    half = head.in_fp16 and dy_CV.dtype == torch.float32
    wide = torch.promote_types(dy_CV.dtype, torch.float32)
    dx_CD = torch.zeros(len(dy_CV), head.shape[1], dtype=wide, device=dy_CV.device)
    for start in range(0, head.shape[0], SLICE):
        W_PD = head.rows(start, min(start + SLICE, head.shape[0]), torch.float16 if half else dy_CV.dtype)
        dy_CP = dy_CV[:, start : start + len(W_PD)]
        if half:
            dx_CD += scaled_mm_back(dy_CP, W_PD, overflow=overflow)
        elif dy_CV.is_cuda and wide != dy_CV.dtype:
            dx_CD += torch.mm(dy_CP, W_PD, out_dtype=wide)
        else:
            dx_CD += dy_CP @ W_PD
    return dx_CD


def add_head_gradient_(grad_VD: Tensor, dy_CV: Tensor, x_CD: Tensor) -> None:
    """``dy^T x``, the gradient of a trained head, added to ``grad_VD``.

    Args:
        grad_VD: fp32 (fp64 for fp64); a product of 16 bits is rounded to them on a CPU before it is added.
    """
    for start in range(0, len(grad_VD), SLICE):
        grad_PD, dy_PC = grad_VD[start : start + SLICE], dy_CV[:, start : start + SLICE].T
        if grad_VD.dtype == dy_CV.dtype:
            grad_PD.addmm_(dy_PC, x_CD)
        elif dy_CV.is_cuda:
            grad_PD += torch.mm(dy_PC, x_CD, out_dtype=grad_VD.dtype)
        else:
            grad_PD += dy_PC @ x_CD
