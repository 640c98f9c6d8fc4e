"""Linear cross-entropy in chunks, on supervised tokens only.

The vocabulary makes the logits the largest tensor of a training step: 2,048 tokens times 49,152 entries are
400 MB in fp32, before softmax and gradient double it twice. Nobody needs them all at once. Here the head is applied
to a fixed number of supervised rows at a time, and the loss and the gradient with respect to the hidden states are
computed in the same visit, so that the logits of a chunk live once and the backward pass is one multiplication by
the incoming gradient. The head itself is frozen (LoRA never trains it), so no weight gradient exists.

The chunk size is a constant, not a function of free memory: the order of additions, and with it every bit of the
result, depends on the data alone. Memory: ``CHUNK * V * 4`` bytes (50 MB at V = 49,152).

Refused: ``F.cross_entropy`` over all logits (memory), and a mean inside (a mean per micro-batch is the accumulation
error that peers shipped for years; the caller divides by the supervised tokens of the whole optimizer step).

Source of the idea: Cut Cross-Entropy (Wijmans et al. 2024, section 4) and Liger-Kernel's fused linear cross-entropy;
the code is our own.

Shape suffixes: N supervised tokens, C rows of one chunk, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 256  # rows of logits alive at once


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        rows_max = min(CHUNK, hidden_ND.shape[0])
        buffer_CV = torch.empty(rows_max, head_VD.shape[0], dtype=head_VD.dtype, device=head_VD.device)
        for start in range(0, hidden_ND.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            target_C = target_N[rows]
            logits_CV = torch.mm(hidden_ND[rows], head_VD.T, out=buffer_CV[: len(target_C)]).float()
            correct += (logits_CV.argmax(-1) == target_C).sum()
            logsumexp_C = torch.logsumexp(logits_CV, dim=-1)
            picked_C = logits_CV.gather(1, target_C[:, None])[:, 0]
            loss += (logsumexp_C - picked_C).sum()
            if grad_ND is not None:
                # d loss / d logits = softmax - one_hot, written over the logits.
                prob_CV = logits_CV.sub_(logsumexp_C[:, None]).exp_()
                prob_CV[torch.arange(len(target_C), device=target_C.device), target_C] -= 1.0
                grad_ND[rows] = prob_CV.to(head_VD.dtype) @ head_VD
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None


def linear_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of ``hidden @ head.T`` against ``target``, and the number of right top-1 guesses.

    Args:
        hidden_ND: last hidden states of the supervised positions, shape (N, D), fp32 or bf16.
        head_VD: frozen output embedding, shape (V, D), same dtype. Gets no gradient.
        target_N: the next token of each position, shape (N,), int64.

    Returns:
        ``(loss, correct)``: fp32 scalar in nats (a sum, not a mean) and int64 scalar.
    """
    loss, correct = _LinearCrossEntropy.apply(hidden_ND, head_VD, target_N)  # type: ignore[misc]
    return loss, correct
