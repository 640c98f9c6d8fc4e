"""Self-attention of a decoder layer over a pack: norm, q, k and v in one product, rotary positions in place.

It takes the place of a stock attention module on one model instance, together with the norm before it (which becomes the
identity, so the decoder layer itself stays stock). Between its products nothing is copied that need not be: q, k and v
are columns of one output, turned where they stand, and their gradients are columns of one tensor again.

Which models it fits is a fact of the family (``models/families.py``); a model that it does not fit keeps its stock module,
and the summary says so.

Shape suffixes: T tokens, D hidden size, N columns of q, k and v together, H query heads, G key/value heads, K head
dimension.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.attention import Saved, Scoring, Span, attention, attention_backward, attention_forward
from tunesmith.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_forward
from tunesmith.kernels.rope import rope_
from tunesmith.layers.lora import LoRAGroup, LoRALinear, Norm


@dataclass(frozen=True)
class Heads:
    """Shape of the heads, and the norms that q and k go through before their positions, where a family has them."""

    queries: int
    keys: int
    width: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def split(self, qkv_TN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of q (T, H, K), k and v (T, G, K)."""
        heads_TXK = qkv_TN.unflatten(1, (-1, self.width))
        q_THK, k_TGK, v_TGK = heads_TXK.split([self.queries, self.keys, self.keys], dim=1)
        return q_THK, k_TGK, v_TGK


class FusedAttention(nn.Module):
    """Attention with adapters on q, k, v and o.

    Args:
        q, k, v, o: the adapted layers; q, k and v become one group.
        heads: their shape.
        scoring: how scores are made.
        norm: the norm before the layer.
    """

    def __init__(self, q: LoRALinear, k: LoRALinear, v: LoRALinear, o: LoRALinear, heads: Heads, scoring: Scoring, norm: Norm):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q, k, v, o
        self.qkv = LoRAGroup([q, k, v])
        self.heads, self.scoring, self.norm = heads, scoring, norm

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        spans: list[Span],
        only_N: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Shape (1, T, D) to (1, T, D), and None in the place of attention weights.

        Args:
            position_embeddings: cosines and sines of the positions, shape (1, T, K or less).
            spans: who sees whom.
            only_N: the positions whose output is wanted, in this order; then the result has shape (1, N, D).
        """
        qkv_TN = self.qkv(hidden_states[0], self.norm)
        cos_TK, sin_TK = (part[0] for part in position_embeddings)
        if qkv_TN.is_cuda:
            o_THK = self._on_gpu(qkv_TN, cos_TK, sin_TK, spans)
        else:
            o_THK = _AttentionFunction.apply(qkv_TN, self.heads, cos_TK, sin_TK, spans, self.scoring)
        assert isinstance(o_THK, Tensor)
        o_NHK = o_THK if only_N is None else o_THK[only_N]
        return self.o_proj(o_NHK.reshape(1, len(o_NHK), -1)), None

    def _on_gpu(self, qkv_TN: Tensor, cos_TK: Tensor, sin_TK: Tensor, spans: list[Span]) -> Tensor:
        q_THK, k_TGK, v_TGK = self.heads.split(qkv_TN)
        if self.heads.q_norm is not None and self.heads.k_norm is not None:
            q_norm, k_norm = self.heads.q_norm, self.heads.k_norm
            q_THK = rms_norm(q_THK, q_norm.weight_I, q_norm.eps, q_norm.offset)
            k_TGK = rms_norm(k_TGK, k_norm.weight_I, k_norm.eps, k_norm.offset)
        q_THK, k_TGK = (_RopeFunction.apply(x, cos_TK, sin_TK) for x in (q_THK, k_TGK))
        return attention(q_THK, k_TGK, v_TGK, spans, self.scoring)  # type: ignore[arg-type]


class _RopeFunction(torch.autograd.Function):
    """Rotary positions on a copy; the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TK, sin_TK)
        return rope_(x_THK.clone(), cos_TK, sin_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return rope_(grads[0].clone(), *ctx.saved_tensors, inverse=True), None, None


class _AttentionFunction(torch.autograd.Function):
    """From q, k and v side by side (T, N) to the heads' outputs (T, H, K)."""

    @staticmethod
    def forward(
        ctx: Any, qkv_TN: Tensor, heads: Heads, cos_TK: Tensor, sin_TK: Tensor, spans: list[Span], scoring: Scoring
    ) -> Tensor:
        q_THK, k_TGK, v_TGK = heads.split(qkv_TN)
        ctx.normed = heads.q_norm is not None and heads.k_norm is not None
        if ctx.normed:
            q_THK, q_rstd = _norm_heads(q_THK, heads.q_norm)
            k_TGK, k_rstd = _norm_heads(k_TGK, heads.k_norm)
            rest = [qkv_TN, q_rstd, k_rstd]
        else:
            # In place: these values are the output of the group before, which keeps its input and not its output.
            rest = [None, None, None]
        rope_(q_THK, cos_TK, sin_TK)
        rope_(k_TGK, cos_TK, sin_TK)
        o_THK, saved = attention_forward(q_THK, k_TGK, v_TGK, spans, scoring)
        ctx.save_for_backward(cos_TK, sin_TK, *rest, *saved.flat())
        ctx.heads, ctx.spans, ctx.scoring, ctx.shape = heads, spans, scoring, qkv_TN.shape
        return o_THK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        heads = ctx.heads
        cos_TK, sin_TK, qkv_TN, q_rstd, k_rstd, *flat = ctx.saved_tensors
        dqkv_TN = grads[0].new_empty(ctx.shape)
        parts = heads.split(dqkv_TN)
        for part, found in zip(parts, attention_backward(grads[0], Saved.of(flat), ctx.spans, ctx.scoring), strict=True):
            part.copy_(found)
        rope_(parts[0], cos_TK, sin_TK, inverse=True)
        rope_(parts[1], cos_TK, sin_TK, inverse=True)
        if ctx.normed:
            inputs = heads.split(qkv_TN)
            for part, x, norm, rstd in zip(parts[:2], inputs[:2], (heads.q_norm, heads.k_norm), (q_rstd, k_rstd), strict=True):
                flat = rms_norm_backward(part.flatten(0, 1), x.flatten(0, 1), norm.weight_I, rstd, norm.offset)
                part.copy_(flat.view(part.shape))
        return dqkv_TN, None, None, None, None, None


def _norm_heads(x_TXK: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
    assert norm is not None
    normed, rstd = rms_norm_forward(x_TXK.flatten(0, 1), norm.weight_I, norm.eps, norm.offset)
    return normed.view(x_TXK.shape), rstd
