"""Linear cross-entropy in chunks, on supervised tokens only.

The vocabulary makes the logits the largest tensor of a training step: 2,048 tokens times 49,152 entries are
400 MB in fp32, before softmax and gradient double it twice. Nobody needs them all at once. Here the head is applied
to a fixed number of supervised rows at a time, and the loss and the gradient with respect to the hidden states are
computed in the same visit, so that the logits of a chunk live once and the backward pass is one multiplication by
the incoming gradient. The head itself is frozen (LoRA never trains it), so no weight gradient exists.

There are two exceptions, whose gradient is computed in the same visit. Rows of new tokens (``layers/new_rows.py``): their
logits take the place of those that the frozen head has for them, in fp32. A head that is trained whole
(``layers/whole_table.py``): it is read in the dtype of the products, and its gradient, as large as it, is added up in fp32.

The chunk size is a constant, not a function of free memory: the order of additions, and with it every bit of the
result, depends on the data alone. Memory: ``min(CHUNK, N) * V * 4`` bytes on a GPU and in fp32 (50 MB at V = 49,152), half of
it in 16 bits on a CPU, and ``2 N D`` or ``4 N D`` for the gradient.

Between the two GEMMs of a chunk, ``cross_entropy_rows_`` turns logits into their gradient where they lie. Its unit is the pass
over memory: one maximum and one softmax (which ATen fuses row by row), instead of argmax, logsumexp, difference and
exponential. 256 x 49,152 on one core: 11 ms instead of 41 in fp32, 14 instead of 44 in bf16 (56 with soft-capping, most of it
the tanh), before the two short passes that mend the softmax's sum. The loss comes out of the same pass, because the largest
probability is one over the sum of the exponentials. Where that is the target's it rounds to 1 once the target leads by 16.6
logits (24 bits), and loss and gradient would be 0 with the others still learning; so what it lacks is summed without it: the
loss is ``log1p(others / target)``, the target's gradient ``-others / sum``, exact at any lead. Whether the top guess is right
needs no argmax either (10 ms: ATen does not vectorise it): the target is compared with the largest of the *other* logits, and
only rows in which the two are equal are looked at again, so that ties go to the first index as in ``argmax``.

bf16 logits are taken to fp32 a few rows at a time. On a GPU the first GEMM writes its fp32 accumulator out and there is
nothing to take; on a CPU it can not, and an fp32 GEMM would cost 2.4 times the time.

A head in fp16 under hidden states in fp32 is multiplied with rows scaled (``kernels/fp16_scaled_mm.py``), the gradient of the
logits likewise; logits, loss and gradient are fp32.

Final soft-capping, ``logits = softcap * tanh(logits / softcap)`` (Bello et al. 2016, section 4, with C = softcap), happens
inside the chunk, in the loss and in the gradient.

Refused: ``F.cross_entropy`` over all logits (memory), and a mean inside (a mean per micro-batch is the accumulation
error that peers shipped for years; the caller divides by the supervised tokens of the whole optimizer step).

Source of the idea: Cut Cross-Entropy (Wijmans et al. 2024, section 4) and Liger-Kernel's fused linear cross-entropy;
the code is our own.

Shape suffixes: N rows (supervised tokens), C rows of one chunk, P some of the rows, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu
from tunesmith.kernels.fp16_scaled_mm import OverflowRows, scaled_mm, scaled_mm_back
from tunesmith.kernels.sliced import SlicedHead, add_head_gradient_, sliced_mm, sliced_mm_back

CHUNK = 256  # rows of logits alive at once
BLOCK = 16  # rows that are taken to fp32 at once: 3 MB at V = 49,152


class TrainedRows(NamedTuple):
    """Rows of the head that are trained, in the place of its own.

    Attributes:
        first: number of the first; the others follow.
        new_rows: one below another, of the width of the head, or all of it; fp32 (fp64 off the GPU).
    """

    first: int
    new_rows: Tensor

    @property
    def columns(self) -> slice:
        """Theirs, of the logits."""
        return slice(self.first, self.first + len(self.new_rows))


def narrow_view(logits_CV: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a gradient of a narrower dtype in the memory of the logits: each row in the first bytes of its own."""
    return logits_CV.view(dtype)[:, : logits_CV.shape[1]]


def cross_entropy_rows_(
    logits_CV: Tensor, target_C: Tensor, softcap: float | None = None, out_CV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of every row; ``logits_CV`` is overwritten with the gradient of that loss with respect to it.

    Args:
        logits_CV: before soft-capping, shape (C, V), fp32, bf16 or fp16 (fp64 off the GPU); rows may be strided.
        target_C: shape (C,), int64.
        softcap: logits are replaced by ``softcap * tanh(logits / softcap)``; None leaves them as they are.
        out_CV: ``narrow_view`` of the logits, where the gradient goes instead, rounded to its dtype.

    Returns:
        ``(loss_C, correct_C)``: nats in fp32 (fp64 for fp64), and whether the target is the first of the largest logits.
    """
    if logits_CV.is_cuda:
        return on_gpu.cross_entropy_rows_(logits_CV, target_C, softcap, out_CV)
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    loss_C = torch.empty(len(logits_CV), dtype=wide, device=logits_CV.device)
    correct_C = torch.empty(len(logits_CV), dtype=torch.bool, device=logits_CV.device)
    as_it_is = out_CV is None and logits_CV.dtype == wide and logits_CV.is_contiguous() and softcap is None
    rows = max(len(logits_CV), 1) if as_it_is else BLOCK
    grad_CV = logits_CV if out_CV is None else out_CV
    parts = zip(*(x.split(rows) for x in (logits_CV, grad_CV, target_C, loss_C, correct_C)), strict=True)
    for logits_PV, grad_PV, target_P, loss_P, correct_P in parts:
        work_PV = logits_PV.to(wide, copy=out_CV is not None).contiguous()
        if softcap is None:
            _plain_rows_(work_PV, target_P, loss_P, correct_P)
        else:
            tanh_PV = torch.tanh(work_PV / softcap)
            work_PV = tanh_PV * softcap
            _plain_rows_(work_PV, target_P, loss_P, correct_P)
            # d tanh(z) = 1 - tanh(z)^2; the factor softcap and its inverse cancel.
            work_PV.addcmul_(work_PV * tanh_PV, tanh_PV, value=-1)
        if not as_it_is:
            grad_PV.copy_(work_PV)
    return loss_C, correct_C


def _plain_rows_(logits_PV: Tensor, target_P: Tensor, loss_P: Tensor, correct_P: Tensor) -> None:
    """Loss and correctness into the last two; contiguous fp32 or fp64 logits become softmax minus one-hot in place."""
    index_P1 = target_P[:, None]
    picked_P = logits_PV.gather(1, index_P1)[:, 0]
    others_P = logits_PV.scatter_(1, index_P1, -torch.inf).amax(-1)
    logits_PV.scatter_(1, index_P1, picked_P[:, None])
    torch.gt(picked_P, others_P, out=correct_P)
    tied_P = picked_P == others_P
    if tied_P.any():
        correct_P[tied_P] = logits_PV[tied_P].argmax(-1) == target_P[tied_P]
    torch.softmax(logits_PV, -1, out=logits_PV)  # in place: it takes a row's maximum before it writes that row
    # ATen adds up a row in long chains, which errs by 1.5e-5 over 49,152 entries; its sum is pairwise, and mends that.
    target_P1 = logits_PV.gather(1, index_P1)
    rest_P1 = logits_PV.scatter_(1, index_P1, 0.0).sum(-1, keepdim=True)
    total_P1 = rest_P1 + target_P1
    logits_PV.div_(total_P1)
    behind_P = (others_P - picked_P) - logits_PV.amax(-1).log_()  # where another entry is the largest
    torch.where(picked_P < others_P, behind_P, torch.log1p(rest_P1 / target_P1)[:, 0], out=loss_P)
    logits_PV.scatter_(1, index_P1, rest_P1.div_(total_P1).neg_())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor | SlicedHead,
        target_N: Tensor,
        softcap: float | None,
        overflow: OverflowRows | None,
        bias_V: Tensor | None,
        first: int,
        new_rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        whole = new_rows is not None and len(new_rows) == head_VD.shape[0]
        trained = None if new_rows is None or whole else TrainedRows(first, new_rows)
        dense = isinstance(head_VD, Tensor)
        half = dense and hidden_ND.dtype == torch.float32 and head_VD.dtype == torch.float16
        device, dtype = hidden_ND.device, hidden_ND.dtype
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_rows = torch.zeros_like(new_rows) if new_rows is not None and ctx.needs_input_grad[7] else None
        loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        widen = hidden_ND.is_cuda and dtype != torch.float32
        buffer_CV = torch.empty(
            min(CHUNK, len(hidden_ND)), head_VD.shape[0], dtype=torch.float32 if widen else dtype, device=device
        )
        for start in range(0, len(hidden_ND), CHUNK):
            rows = slice(start, start + CHUNK)
            target_C = target_N[rows]
            logits_CV = buffer_CV[: len(target_C)]
            if not isinstance(head_VD, Tensor):
                sliced_mm(hidden_ND[rows], head_VD, logits_CV, overflow)
            elif half:
                scaled_mm(hidden_ND[rows], head_VD, out=logits_CV, overflow=overflow)
            elif widen:
                torch.mm(hidden_ND[rows], head_VD.T, out_dtype=torch.float32, out=logits_CV)
            else:
                torch.mm(hidden_ND[rows], head_VD.T, out=logits_CV)
            if trained is not None:
                _put_logits(logits_CV, hidden_ND[rows], trained)
            if bias_V is not None:
                logits_CV.add_(bias_V)
            # A gradient of 16 bits is written over its logits: a copy beside them would be half as much again.
            grad_CV = narrow_view(logits_CV, dtype) if widen else logits_CV
            loss_C, correct_C = cross_entropy_rows_(logits_CV, target_C, softcap, grad_CV if widen else None)
            loss += loss_C.sum()
            correct += correct_C.sum()
            if not any(ctx.needs_input_grad):
                continue
            if whole and grad_rows is not None:
                add_head_gradient_(grad_rows, grad_CV, hidden_ND[rows])
            back_CD = None if trained is None else _take_gradient(grad_CV, hidden_ND[rows], trained, grad_rows)
            if grad_ND is None:
                continue
            if not isinstance(head_VD, Tensor):
                grad_ND[rows] = sliced_mm_back(grad_CV, head_VD, overflow)
            elif half:
                scaled_mm_back(logits_CV, head_VD, out=grad_ND[rows], overflow=overflow)
            else:
                torch.mm(grad_CV, head_VD, out=grad_ND[rows])
            if back_CD is not None:
                grad_ND[rows] += back_CD
        ctx.save_for_backward(grad_ND)
        ctx.grad_rows = grad_rows
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,), grad_rows = ctx.saved_tensors, ctx.grad_rows
        assert grad_rows is not None or not ctx.needs_input_grad[7], "a second backward pass over one loss"
        ctx.grad_rows = None  # of a whole head it is the largest tensor of the step: it is handed over and not copied
        grad_ND = None if grad_ND is None else grad_ND * grads[0]
        return grad_ND, None, None, None, None, None, None, None if grad_rows is None else grad_rows.mul_(grads[0])


def _put_logits(logits_CV: Tensor, hidden_CD: Tensor, trained: TrainedRows) -> None:
    """Write the logits of the trained rows over those of the frozen ones."""
    logits_CV[:, trained.columns] = hidden_CD.to(trained.new_rows.dtype) @ trained.new_rows.T


def _take_gradient(grad_CV: Tensor, hidden_CD: Tensor, trained: TrainedRows, grad_rows: Tensor | None) -> Tensor:
    """Take the trained rows' columns out of a gradient of logits, which are zero afterwards, and add what they come to.

    Args:
        grad_rows: of the trained rows; added to. None where nobody asks for it.

    Returns:
        Their part of the gradient of the hidden states, in its dtype.
    """
    grad_new = grad_CV[:, trained.columns].to(trained.new_rows.dtype)  # a copy where the dtype differs
    if grad_rows is not None:
        grad_rows.addmm_(grad_new.T, hidden_CD.to(grad_new.dtype))
    back_CD = (grad_new @ trained.new_rows).to(hidden_CD.dtype)
    grad_CV[:, trained.columns] = 0
    return back_CD


def linear_cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor | SlicedHead,
    target_N: Tensor,
    softcap: float | None = None,
    overflow: OverflowRows | None = None,
    bias_V: Tensor | None = None,
    trained: TrainedRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of ``hidden @ head.T + bias`` against ``target``, and the number of right top-1 guesses.

    Args:
        hidden_ND: last hidden states of the supervised positions, shape (N, D), fp32, bf16 or fp16 (fp64 off the GPU).
        head_VD: output embedding, shape (V, D), same dtype, or fp16 under an fp32 hidden_ND; or one that is dense a slice at a
            time. Gets no gradient.
        target_N: the next token of each position, shape (N,), int64.
        softcap: final soft-capping of the logits, or None.
        overflow: where rows beyond fp16 are counted, under a head in fp16.
        bias_V: frozen bias of the head, shape (V,), of any dtype, or None.
        trained: rows of the head that get a gradient, and count in the place of its own; None for none. All of them: what
            ``head_VD`` is made of.

    Returns:
        ``(loss, correct)``: fp32 scalar (fp64 for fp64) in nats, a sum and not a mean, and int64 scalar.
    """
    first, new_rows = (0, None) if trained is None else trained
    loss, correct = _LinearCrossEntropy.apply(  # type: ignore[misc]
        hidden_ND, head_VD, target_N, softcap, overflow, bias_V, first, new_rows
    )
    return loss, correct
