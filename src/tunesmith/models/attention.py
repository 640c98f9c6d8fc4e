"""Attention over packed documents for stock modules: no token sees another document, and no T x T mask is ever built.

``kernels/attention.py`` does the work. It is registered under transformers' public ``AttentionInterface``; who sees whom
arrives as the keyword ``spans``, which the stock decoder layers hand down untouched. No mask function is registered
beside it: with one, transformers asks the positions whether documents are packed, and on a GPU the host waits for the answer.

Shape suffixes: H query heads, G key/value heads, T tokens, K head dimension; here: P tokens of the header, n keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tunesmith.kernels.attention import Reach, ScoreParams, Span, attention, reach_attention

PACKED = "tunesmith_packed"


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
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of a pack.

    Args:
        query_1HTK, key_1GTK, value_1GTK: shapes (1, H, T, K) and (1, G, T, K); H is a multiple of G.
        attention_mask: must be None; the spans say all there is to say.
        scaling: factor on the scores.
        spans: which tokens see which.
        sliding_window: tokens that a token sees, itself included.
        softcap: of the scores.
        s_aux: attention sinks, shape (H,): a score of each head beside those of its keys. They are frozen.

    Returns:
        Output of shape (1, T, H, K), and None in the place of the attention weights.
    """
    assert attention_mask is None, "packed attention takes spans, not a mask"
    assert s_aux is None or not s_aux.requires_grad, "attention sinks are frozen: they would get no gradient"
    scoring = ScoreParams(scaling, sliding_window, softcap, s_aux)
    q_THK, k_TGK, v_TGK = (x[0].transpose(0, 1) for x in (query_1HTK, key_1GTK, value_1GTK))
    return attention(q_THK, k_TGK, v_TGK, spans, scoring)[None], None


def attention_behind(
    header: tuple[Tensor, Tensor],
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    reaches: Sequence[Reach],
    scoring: ScoreParams,
) -> Tensor:
    """Attention of a pack whose queries also see a header that stands before it, where a kernel of the GPU computes it.

    Args:
        header: its keys and values, shape (G, P, K): the first P rows of those that the reaches count.

    Returns:
        Output of shape (1, T, H, K).
    """
    q_THK, k_TGK, v_TGK = (x[0].transpose(0, 1) for x in (query_1HTK, key_1GTK, value_1GTK))
    k_nGK, v_nGK = (torch.cat([x.transpose(0, 1), y]) for x, y in zip(header, (k_TGK, v_TGK), strict=True))
    return reach_attention(q_THK, k_nGK, v_nGK, reaches, scoring)[None]


AttentionInterface.register(PACKED, packed_attention)
