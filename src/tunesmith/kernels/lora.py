"""The product of a layer with an adapter, rounded once: ``x W^T + scale * (x A^T) B^T + bias``.

The usual order computes ``x W^T`` in bf16, rounds, adds the adapter's product and rounds again. bf16 keeps eight bits:
an update below half a unit in the last place of the base product (0.2 % of it) vanishes in every single element, and
that is the size of LoRA's updates for the first part of training, when B has just left zero. Added before the one
rounding, the same update survives on average, because it tips the elements that lie near a rounding boundary.

In fp32 and fp64 nothing is lost and two GEMMs do. In bf16 and fp16 on a CPU, whose GEMM keeps its accumulator to itself,
one GEMM runs over the concatenation ``[x | xA] . [W | scale * B]^T``: copying W costs O * I moves against T * O * I
multiplications (1 % of the time at 512 tokens, 576 x 1,536, one core), and the whole is as fast as two GEMMs within 5 %.
Refused there: W in fp32 (memory, and 2.4 times the time where the processor multiplies bf16 itself), and a permanent
concatenation (a second copy of the base model, and tied or shared weights cut). On a GPU ``kernels/triton/lora.py`` runs
both products into one accumulator without any copy.

This is the product of a weight that stands by itself: an expert's, one with row lengths (``layers/dora.py``), a quantised one
on a CPU. Where a group can keep columns free beside its weights, ``layers/lora.py`` has one GEMM of the library without any
copy. That way would cost more here: x has to be copied beside its narrow product, and a dense weight beside its B.

LoRA: Hu et al. 2021, section 4.1.

Shape suffixes: T tokens, I in_features, O out_features, R rank.
"""

import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu


def lora_matmul(
    x_TI: Tensor,
    weight_OI: Tensor,
    xA_TR: Tensor,
    B_OR: Tensor,
    scale: float,
    bias_O: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x W^T + scale * xA B^T (+ bias)``, accumulated in fp32 (fp64 for fp64) and rounded once.

    Args:
        x_TI: shape (T, I), fp64, fp32, bf16 or fp16; rows may be strided, here and in all that follows.
        weight_OI: frozen base weight, shape (O, I), dtype of x.
        xA_TR: the adapter's narrow product ``x A^T``, shape (T, R), dtype of x.
        B_OR: shape (O, R), dtype of x.
        scale: ``alpha / r``.
        bias_O: shape (O,), dtype of x.
        out: shape (T, O), dtype of x, to be written; rows may be strided.

    Returns:
        Shape (T, O), dtype of x; ``out`` where it is given.
    """
    tensors = [t for t in (weight_OI, xA_TR, B_OR, bias_O, out) if t is not None]
    assert all(t.dtype == x_TI.dtype for t in tensors), [x_TI.dtype, *(t.dtype for t in tensors)]
    assert out is None or out.shape == (len(x_TI), len(weight_OI)), out.shape
    if x_TI.dtype in (torch.float32, torch.float64):
        return _linear(x_TI, weight_OI, bias_O, out).addmm_(xA_TR, B_OR.T, alpha=scale)
    if x_TI.is_cuda:
        return on_gpu.lora_matmul(x_TI, weight_OI, xA_TR, B_OR, scale, bias_O, out)
    return _linear(torch.cat((x_TI, xA_TR), 1), torch.cat((weight_OI, B_OR * scale), 1), bias_O, out)


def _linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, out: Tensor | None) -> Tensor:
    if bias_O is None:
        return torch.mm(x_TI, weight_OI.T, out=out)
    return torch.addmm(bias_O, x_TI, weight_OI.T, out=out)
