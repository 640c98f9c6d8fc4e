"""Rows of cross-entropy in Triton; the specification is ``tunesmith/kernels/cross_entropy.py``.

One program a row and two passes over the vocabulary, which no register file holds (V reaches 262,144). The first pass
keeps a running maximum and a running sum of exponentials that is rescaled whenever the maximum grows (online softmax,
Milakov and Gimelshein 2018, algorithm 3), the index of the maximum and the target's logit. The second pass writes the
gradient over the logits. Read twice and written once is the least that a row larger than the chip's registers allows.

A gradient of half the width is written over its own row as well, into the first half of its bytes: block k goes where blocks
k/2 of the logits stood, which are read by then, but for the first, which lies in the bytes that it is made of. So all threads
of the program have read a block before one of them writes (a barrier).

What the target lacks is summed without the target, as in the reference: its probability rounds to 1 once it leads by 16.6.

The target's logit is taken out of the first pass and not loaded by its address: a second load would have to be ordered
against the stores of the second pass. Equal maxima go to the first index, as in ``argmax``.

Shape suffixes: C rows of one chunk, V vocabulary.
"""

# Triton's types do not say how a kernel is launched: keywords, numbers for constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # entries of the vocabulary at once


@triton.jit
def _tanh(z):
    return 2.0 * tl.sigmoid(2.0 * z) - 1.0


@triton.jit
def _rows(
    logits_ptr,
    out_ptr,
    target_ptr,
    loss_ptr,
    correct_ptr,
    V,
    stride,
    out_stride,
    softcap,
    CAP: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    row_ptr = logits_ptr + row * stride
    out_ptr += row * out_stride
    # Finite, so that a block of nothing but -inf gives exp(-inf) = 0 and not exp(nan).
    top = -3.0e38
    others = 0.0  # sum over all entries but the target
    picked = 0.0
    best = V
    for start in range(0, V, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + col, col < V, other=0.0).to(tl.float32)
        if CAP:
            x = softcap * _tanh(x / softcap)
        x = tl.where(col < V, x, -float("inf"))
        block_top = tl.max(x, 0)
        block_best = tl.min(tl.where(x == block_top, col, V), 0)
        best = tl.where(block_top > top, block_best, best)
        new_top = tl.maximum(top, block_top)
        others = others * tl.exp(top - new_top) + tl.sum(tl.where(col == target, 0.0, tl.exp(x - new_top)), 0)
        picked += tl.sum(tl.where(col == target, x, 0.0), 0)
        top = new_top
    total = others + tl.exp(picked - top)
    whole = 1.0 + others
    # log(1 + others) to the last digit: what rounding took from the sum is put back (Kahan; Goldberg 1991, theorem 4).
    log1p = tl.where(whole == 1.0, others, tl.log(whole) * others / tl.where(whole == 1.0, 1.0, whole - 1.0))
    tl.store(loss_ptr + row, tl.where(picked == top, log1p, tl.log(total) + (top - picked)))
    tl.store(correct_ptr + row, best == target)
    for start in range(0, V, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + col, col < V, other=0.0).to(tl.float32)
        if CAP:
            t = _tanh(x / softcap)
            grad = tl.where(col == target, -others, tl.exp(softcap * t - top)) / total * (1.0 - t * t)
        else:
            grad = tl.where(col == target, -others, tl.exp(x - top)) / total
        if NARROW:
            tl.debug_barrier()
        tl.store(out_ptr + col, grad.to(out_ptr.dtype.element_ty), col < V)


def cross_entropy_rows_(
    logits_CV: Tensor, target_C: Tensor, softcap: float | None = None, out_CV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As ``tunesmith.kernels.cross_entropy.cross_entropy_rows_``: ``(loss_C, correct_C)``; overwrites the logits."""
    grad_CV = logits_CV if out_CV is None else out_CV
    assert grad_CV.shape == logits_CV.shape and grad_CV.stride(1) == 1, (grad_CV.shape, grad_CV.stride())
    C, V = logits_CV.shape
    assert logits_CV.stride(1) == 1 and logits_CV.dtype != torch.float64, (logits_CV.stride(), logits_CV.dtype)
    assert target_C.shape == (C,) and target_C.is_contiguous(), (target_C.shape, target_C.stride())
    loss_C = torch.empty(C, dtype=torch.float32, device=logits_CV.device)
    correct_C = torch.empty(C, dtype=torch.bool, device=logits_CV.device)
    if C:
        _rows[(C,)](
            logits_CV,
            grad_CV,
            target_C,
            loss_C,
            correct_C,
            V,
            logits_CV.stride(0),
            grad_CV.stride(0),
            1.0 if softcap is None else softcap,
            CAP=softcap is not None,
            NARROW=out_CV is not None,
            BLOCK=min(BLOCK, triton.next_power_of_2(V)),
            num_warps=8,
        )
    return loss_C, correct_C
