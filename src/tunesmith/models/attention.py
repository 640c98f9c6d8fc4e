"""Attention over packed documents for stock modules: no token sees another document, and no T x T mask is ever built.

``kernels/attention.py`` does the work. It is registered under transformers' public ``AttentionInterface``; who sees whom
arrives as the keyword ``spans``, which the stock decoder layers hand down untouched.

Shape suffixes: H query heads, G key/value heads, T tokens, K head dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tunesmith.errors import ModelError
from tunesmith.kernels.attention import Saved, Scoring, Span, attention, attention_backward, attention_forward

PACKED = "tunesmith_packed"


def refuse_variants(variants: dict[str, Any], longest: int) -> None:
    """Refuse attention that is not plain causal: what a layer asks for is never left out in silence.

    Args:
        variants: the keywords that a stock layer hands to its attention function.
        longest: tokens of the longest document; a sliding window that covers it changes nothing.

    Raises:
        ModelError: soft-capped scores, attention sinks, or a window shorter than a document.
    """
    window = variants.get("sliding_window")
    if window is not None and longest > window:
        raise ModelError(f"sliding-window attention ({window}) is not supported for {longest} tokens", "lower max_length")
    for name in ("softcap", "s_aux"):
        if variants.get(name) is not None:
            raise ModelError(f"attention with {name} is not supported yet", "choose a model with plain causal attention")


class _PackedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor, spans: list[Span], scoring: Scoring) -> Tensor:
        o_THK, saved = attention_forward(query_THK, key_TGK, value_TGK, spans, scoring)
        ctx.save_for_backward(*saved.flat())
        ctx.spans, ctx.scoring = spans, scoring
        return o_THK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *attention_backward(grads[0], Saved.of(ctx.saved_tensors), ctx.spans, ctx.scoring), None, None


def packed_attention(
    module: nn.Module,
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    spans: list[Span],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **variants: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of a pack.

    Args:
        query_1HTK, key_1GTK, value_1GTK: shapes (1, H, T, K) and (1, G, T, K); H is a multiple of G.
        attention_mask: must be None; the spans say all there is to say.
        scaling: factor on the scores.
        spans: which tokens see which.
        sliding_window: tokens that a token sees, itself included.
        softcap: of the scores.

    Returns:
        Output of shape (1, T, H, K), and None in the place of the attention weights.

    Raises:
        ModelError: attention sinks, which are not supported.
    """
    assert attention_mask is None, "packed attention takes spans, not a mask"
    if variants.get("s_aux") is not None:
        raise ModelError("attention with s_aux is not supported yet", "choose a model without attention sinks")
    scoring = Scoring(scaling, sliding_window, softcap)
    q_THK, k_TGK, v_TGK = (x[0].transpose(0, 1) for x in (query_1HTK, key_1GTK, value_1GTK))
    run = attention if q_THK.is_cuda else _PackedFunction.apply
    return run(q_THK, k_TGK, v_TGK, spans, scoring)[None], None  # type: ignore[index]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
