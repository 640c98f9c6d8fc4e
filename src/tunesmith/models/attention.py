"""Attention over packed documents: no token sees another document, and no T x T mask is ever built.

A pack is one row of T tokens that holds several documents one after another. The stock way to keep them apart is a
block-diagonal mask, whose T^2 entries are mostly "no". Here the sequence is split at the document borders and every
piece runs as ordinary causal attention, which is both less work (sum of squares instead of square of the sum) and
exact. It is registered under transformers' public ``AttentionInterface``; the borders arrive as the keyword
``cu_seqlens`` that the stock decoder layers hand down untouched.

Shape suffixes: H query heads, G key/value heads, T tokens, K head dimension.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tunesmith.errors import ModelError

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


def packed_attention(
    module: nn.Module,
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seqlens: list[int],
    **variants: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of a pack.

    Args:
        query_1HTK, key_1GTK, value_1GTK: shapes (1, H, T, K) and (1, G, T, K); H is a multiple of G.
        attention_mask: must be None; the borders say all there is to say.
        scaling: factor on the scores.
        cu_seqlens: document borders, ``[0, len_0, len_0 + len_1, ..., T]``.

    Returns:
        Output of shape (1, T, H, K), and None in the place of the attention weights.
    """
    assert attention_mask is None, "packed attention takes document borders, not a mask"
    lengths = [b - a for a, b in pairwise(cu_seqlens)]
    refuse_variants(variants, longest=max(lengths))
    groups = query_1HTK.shape[1] // key_1GTK.shape[1]
    if groups > 1:
        key_1GTK = key_1GTK.repeat_interleave(groups, dim=1)
        value_1GTK = value_1GTK.repeat_interleave(groups, dim=1)
    pieces = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        for q, k, v in zip(
            query_1HTK.split(lengths, dim=2), key_1GTK.split(lengths, dim=2), value_1GTK.split(lengths, dim=2), strict=True
        )
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
