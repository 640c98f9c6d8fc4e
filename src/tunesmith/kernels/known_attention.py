"""Attention whose output is known already: the forward pass of a recomputed layer without its scores.

The backward pass of attention reads q, k, v, the output and the logsumexp of each row; a layer that is recomputed makes q, k
and v again, and its output and logsumexp are what they were. So whoever kept these two (``layers/offload.py``) hands them in,
and the forward pass is nothing: at T tokens that saves 2 T q FLOP a token and layer, of 9 T q.

The same kernels as without (``kernels/attention.py``), so that the gradients are the same to the bit: PyTorch's flash
attention, whose backward operator is called with what was kept, or our own blocks, which ask for the output alone and make
probabilities again. PyTorch's kernels a document, for cards and heads that flash does not know, name no logsumexp that one
could hand in: ``cannot_know`` says so.

Shape suffixes: T tokens, H query heads, G key/value heads, J query heads of each, K head dimension; here: n its keys.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu
from tunesmith.kernels.attention import (
    Reach,
    Saved,
    ScoreParams,
    Span,
    attention_backward,
    attention_forward,
    by_head,
    flash_fits,
    flash_layout,
    flash_options,
    gpu_kernel,
)

Keep = Callable[..., None]


def cannot_know(device: torch.device, dtype: torch.dtype, width: int, scoring: ScoreParams) -> str | None:
    """Why the output of such attention cannot be handed in, or None.

    Args:
        dtype: of the queries.
        width: features of a head.
    """
    if device.type != "cuda" or scoring.softcap is not None or scoring.sinks_H is not None:
        return None
    if flash_fits(torch.cuda.get_device_capability(device), dtype, width, scoring):
        return None
    name = str(dtype).removeprefix("torch.")
    return f"PyTorch's flash attention has no {name} heads of {width} on this GPU, and its other kernels keep no logsumexp"


def known_attention(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    spans: list[Span],
    scoring: ScoreParams,
    known: Sequence[Tensor] | None,
    keep: Keep,
) -> Tensor:
    """As ``attention``, recorded by autograd.

    Args:
        known: what ``keep`` was given for these queries, keys and values; None where they are new.
        keep: called with what a second pass needs, where they are new.

    Returns:
        Output of shape (T, H, K).
    """
    if gpu_kernel(q_THK, scoring) is None:
        return _BlocksFunction.apply(q_THK, k_TGK, v_TGK, spans, scoring, known, keep)  # type: ignore[return-value]
    seen, borders, longest = flash_layout(tuple(Reach.of(span) for span in spans), q_THK.device)
    if seen is not None:
        k_TGK, v_TGK = k_TGK[seen], v_TGK[seen]
    return _FlashFunction.apply(q_THK, k_TGK, v_TGK, *borders, longest, scoring, known, keep)  # type: ignore[return-value]


class _BlocksFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        spans: list[Span],
        scoring: ScoreParams,
        known: Sequence[Tensor] | None,
        keep: Keep,
    ) -> Tensor:
        if known is None:
            o_THK, saved = attention_forward(q_THK, k_TGK, v_TGK, spans, scoring)
            keep(saved.o_GTJK)
        else:
            (o_GTJK,) = known
            o_THK = o_GTJK.transpose(0, 1).reshape(q_THK.shape)
            saved = Saved(*by_head(q_THK, k_TGK, v_TGK), o_GTJK, ())
        ctx.save_for_backward(*saved[:4])
        ctx.spans, ctx.scoring = spans, scoring
        return o_THK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = Saved.from_tensors(ctx.saved_tensors)
        return *attention_backward(grads[0], saved, ctx.spans, ctx.scoring), None, None, None, None


class _FlashFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THK: Tensor,
        k_nGK: Tensor,
        v_nGK: Tensor,
        query_borders: Tensor,
        key_borders: Tensor,
        longest: tuple[int, int],
        scoring: ScoreParams,
        known: Sequence[Tensor] | None,
        keep: Keep,
    ) -> Tensor:
        options = flash_options(scoring, q_THK.shape[1] != k_nGK.shape[1])
        if known is None:
            aux = on_gpu.AuxRequest(lse=True)
            given = on_gpu.varlen_attn(q_THK, k_nGK, v_nGK, query_borders, key_borders, *longest, return_aux=aux, **options)
            o_THK, logsumexp_HT = given
            keep(o_THK, logsumexp_HT)
        else:
            o_THK, logsumexp_HT = known
        ctx.save_for_backward(q_THK, k_nGK, v_nGK, o_THK, logsumexp_HT, query_borders, key_borders)
        ctx.longest, ctx.scale, ctx.window = longest, scoring.scale, options["window_size"]
        return o_THK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        window = ctx.window
        rng_state = torch.zeros(2, dtype=torch.uint64, device=grads[0].device)  # nothing is dropped
        # What autograd calls behind varlen_attn.
        dq_THK, dk_nGK, dv_nGK = torch.ops.torch_attn._varlen_attn_backward(
            grads[0], *ctx.saved_tensors, *ctx.longest, window == (-1, 0), rng_state, ctx.scale, list(window)
        )
        return dq_THK, dk_nGK, dv_nGK, None, None, None, None, None, None
