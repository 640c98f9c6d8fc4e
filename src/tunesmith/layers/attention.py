"""Self-attention of a decoder layer over a pack: norm, q, k and v in one product, rotary positions in place.

It takes the place of a stock attention module on one model instance, together with the norm before it (which becomes the
identity, so the decoder layer itself stays stock). Between its products nothing is copied that need not be: q, k and v
are columns of one output, turned where they stand, and their gradients are columns of one tensor again.

What makes those columns differs: three layers; one layer for all; two, where values are what the key layer makes; or q's
alone, where keys and values are those of an earlier layer. The earlier layer leaves them in the mapping that stock decoder
layers hand down, in the stock form, so that stock and fused layers read each other's. They are ordinary tensors of the
graph, and the gradients of all their readers meet in the writer; such layers run step by step under autograd, since one
hand-written step from q, k and v to the output has no place where another layer could look in.

Which models it fits is a fact of the family (``families.py``); a model that it does not fit keeps its stock module,
and the summary says so.

Shape suffixes: T tokens, N rows, D hidden size, I in_features, M outputs of a group, H query heads, G key/value heads, K head
dimension; here: X is H or G.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.attention import Saved, ScoreParams, Span, attention, attention_backward, attention_forward
from tunesmith.kernels.known_attention import known_attention
from tunesmith.kernels.rms_norm import rms_norm_backward, rms_norm_forward
from tunesmith.kernels.rope import rope_
from tunesmith.launch.group import Part
from tunesmith.layers.lora import LoRALinear, Norm, join
from tunesmith.layers.offload import AttentionResult
from tunesmith.layers.sequence import heads_apart


@dataclass(frozen=True)
class Heads:
    """Shape of the heads, and what happens to them before they meet.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key/value heads; 0 where they are another layer's.
        head_dim: features of a head.
        q_norm, k_norm, v_norm: norms of each head before its positions, where a family has them; q's and k's come together.
        rotary: q and k are turned by their positions.
        half_cosines: the cosines come once for both halves of a head, shape (T, K / 2), and not twice.
        keys_are_values: v is what the key layer makes, before the norm of k.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    v_norm: Norm | None = None
    rotary: bool = True
    half_cosines: bool = False
    keys_are_values: bool = False

    def __post_init__(self) -> None:
        assert self.k_norm is None or self.q_norm is not None
        assert self.k_norm is not None or (self.v_norm is None and not self.keys_are_values), "k would be turned as v"

    def split(self, qkv_TM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of q (T, H, K), k and v (T, G, K)."""
        heads_TXK = qkv_TM.unflatten(1, (-1, self.head_dim))
        if self.keys_are_values:
            q_THK, k_TGK = heads_TXK.split([self.num_heads, self.num_kv_heads], dim=1)
            return q_THK, k_TGK, k_TGK
        q_THK, k_TGK, v_TGK = heads_TXK.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        return q_THK, k_TGK, v_TGK


@dataclass(frozen=True)
class SharedKV:
    """Keys and values that several layers use.

    Attributes:
        name: under which the mapping holds them.
        writes: this layer makes them; else it reads them.
    """

    name: str
    writes: bool


class FusedAttention(nn.Module):
    """Attention with adapters on its projections.

    Args:
        inputs: the adapted layers that make q, k and v, by their names, in the order of their columns; they become one group.
        o: the adapted output projection.
        heads: their shape.
        scoring: how scores are made.
        norm: the norm before the layer.
        shared: keys and values that it shares with other layers.

    Attributes:
        result: where what it gives in a pass is kept for the layer's second one (``models/recompute.py``); None for nowhere.
        part: processes among whom a pack's tokens are shared out (``layers/sequence.py``); None where all tokens are here.
    """

    result: AttentionResult | None = None
    part: Part | None = None

    def __init__(
        self,
        inputs: Mapping[str, LoRALinear],
        o: LoRALinear,
        heads: Heads,
        scoring: ScoreParams,
        norm: Norm,
        shared: SharedKV | None = None,
    ):
        super().__init__()
        for name, layer in inputs.items():
            self.register_module(name, layer)
        self.o_proj = o
        self.qkv = join(list(inputs.values()))
        self.heads, self.scoring, self.norm, self.shared = heads, scoring, norm, shared

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        spans: list[Span],
        only_N: Tensor | None = None,
        shared_kv_states: MutableMapping[str, tuple[Tensor, Tensor]] | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Shape (1, T, D) to (1, T, D), and None in the place of attention weights.

        Args:
            position_embeddings: cosines and sines of the positions, shape (1, T, K or less).
            spans: who sees whom.
            only_N: the positions whose output is wanted, in this order; then the result has shape (1, N, D).
            shared_kv_states: keys and values of layers before this one, each of shape (1, G, T, K), turned already.
        """
        qkv_TM = self.qkv(hidden_states.squeeze(0), self.norm)  # the gradient of an index would be a copy
        cos_TK, sin_TK = (part[0] for part in position_embeddings)
        if self.heads.half_cosines:
            cos_TK, sin_TK = torch.cat([cos_TK, cos_TK], 1), torch.cat([sin_TK, sin_TK], 1)
        if qkv_TM.is_cuda or not (self.shared is self.result is self.part is None):
            o_THK = self._in_steps(qkv_TM, cos_TK, sin_TK, spans, shared_kv_states)
        else:
            o_THK = _AttentionFunction.apply(qkv_TM, self.heads, cos_TK, sin_TK, spans, self.scoring)
        assert isinstance(o_THK, Tensor)
        o_NHK = o_THK if only_N is None else o_THK[only_N]
        return self.o_proj(o_NHK.flatten(1)[None]), None

    def _in_steps(
        self,
        qkv_TM: Tensor,
        cos_TK: Tensor,
        sin_TK: Tensor,
        spans: list[Span],
        states: MutableMapping[str, tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        shared = self.shared
        q_THK, k_TGK, v_TGK = _HeadsFunction.apply(qkv_TM, self.heads, cos_TK, sin_TK)  # type: ignore[misc]
        if shared is not None:
            assert states is not None, "the decoder layer hands no keys and values down"
            if shared.writes:
                # Laid out by head once, here: every reader would else make and keep a copy of its own.
                k_1GTK, v_1GTK = (x.transpose(0, 1).contiguous()[None] for x in (k_TGK, v_TGK))
                states[shared.name] = k_1GTK, v_1GTK
            k_TGK, v_TGK = (x[0].transpose(0, 1) for x in states[shared.name])
        attend = attention
        if self.result is not None:
            attend = partial(known_attention, known=self.result.known(), keep=self.result.keep)
        if self.part is not None:
            return heads_apart(attend, self.part, q_THK, k_TGK, v_TGK, spans, self.scoring)
        return attend(q_THK, k_TGK, v_TGK, spans, self.scoring)


class _HeadsFunction(torch.autograd.Function):
    """From q, k and v side by side (T, M) to the heads, normed and turned; their gradients are written side by side again.

    Without norms the heads are views of what came in, turned in place by one launch: what attention keeps is ``2 M`` bytes a
    token in 16 bits, once. With norms it is that and ``2 (H + G) K`` more: the gradient of a norm needs what was normed.
    """

    @staticmethod
    def forward(ctx: Any, qkv_TM: Tensor, heads: Heads, cos_TK: Tensor, sin_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_THK, k_TGK, v_TGK = heads.split(qkv_TM)
        rstds: list[Tensor | None] = [None, None, None]
        if heads.q_norm is not None:
            q_THK, rstds[0] = norm_heads(q_THK, heads.q_norm)
            if heads.k_norm is not None:
                k_TGK, rstds[1] = norm_heads(k_TGK, heads.k_norm)
            if heads.rotary:  # what the norms wrote is ours
                q_THK, k_TGK = (rope_(x, cos_TK, sin_TK) for x in (q_THK, k_TGK))
        elif heads.rotary:
            # Where they stand: the views of q and k see it, and the group before keeps its input and not this output.
            rope_(qkv_TM.unflatten(1, (-1, heads.head_dim))[:, : heads.num_heads + heads.num_kv_heads], cos_TK, sin_TK)
        if heads.v_norm is not None:
            v_TGK, rstds[2] = norm_heads(v_TGK, heads.v_norm)
        ctx.save_for_backward(cos_TK, sin_TK, qkv_TM if heads.q_norm is not None else None, *rstds)
        ctx.heads, ctx.shape = heads, qkv_TM.shape
        return q_THK, k_TGK, v_TGK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos_TK, sin_TK, qkv_TM, *rstds = ctx.saved_tensors
        heads, dqkv_TM = ctx.heads, grads[0].new_empty(ctx.shape)
        norms = (heads.q_norm, heads.k_norm, heads.v_norm)
        inputs = heads.split(dqkv_TM if qkv_TM is None else qkv_TM)
        outs = list(heads.split(dqkv_TM))
        if heads.keys_are_values:
            outs[2] = torch.empty_like(outs[2])
        for which, (grad_TXK, x_TXK, out_TXK) in enumerate(zip(grads, inputs, outs, strict=True)):
            if grad_TXK.stride(-1) != 1:  # that of a sum comes expanded
                grad_TXK = grad_TXK.contiguous()
            norm, turns = norms[which], heads.rotary and which < 2
            if turns:
                grad_TXK = rope_(grad_TXK, cos_TK, sin_TK, inverse=True, out=torch.empty_like(out_TXK) if norm else out_TXK)
            if norm is not None:
                _norm_heads_backward(grad_TXK, x_TXK, norm, rstds[which], out_TXK)
            elif not turns:
                out_TXK.copy_(grad_TXK)
        if heads.keys_are_values:
            outs[1].add_(outs[2])
        return dqkv_TM, None, None, None


class _AttentionFunction(torch.autograd.Function):
    """From q, k and v side by side (T, M) to the heads' outputs (T, H, K)."""

    @staticmethod
    def forward(
        ctx: Any, qkv_TM: Tensor, heads: Heads, cos_TK: Tensor, sin_TK: Tensor, spans: list[Span], scoring: ScoreParams
    ) -> Tensor:
        q_THK, k_TGK, v_TGK = heads.split(qkv_TM)
        # Without norms in place: these values are the output of the group before, which keeps its input and not its output.
        rest: list[Tensor | None] = [None, None, None, None]
        if heads.k_norm is not None:
            q_THK, q_rstd = norm_heads(q_THK, heads.q_norm)
            k_TGK, k_rstd = norm_heads(k_TGK, heads.k_norm)
            rest[:3] = [qkv_TM, q_rstd, k_rstd]
        if heads.v_norm is not None:
            v_TGK, rest[3] = norm_heads(v_TGK, heads.v_norm)
        if heads.rotary:
            rope_(q_THK, cos_TK, sin_TK)
            rope_(k_TGK, cos_TK, sin_TK)
        o_THK, saved = attention_forward(q_THK, k_TGK, v_TGK, spans, scoring)
        ctx.save_for_backward(cos_TK, sin_TK, *rest, *saved.tensors())
        ctx.heads, ctx.spans, ctx.scoring, ctx.shape = heads, spans, scoring, qkv_TM.shape
        return o_THK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        heads = ctx.heads
        cos_TK, sin_TK, qkv_TM, q_rstd, k_rstd, v_rstd, *tensors = ctx.saved_tensors
        dqkv_TM = grads[0].new_empty(ctx.shape)
        dq_THK, dk_TGK, dv_TGK = heads.split(dqkv_TM)
        grads_qkv = attention_backward(grads[0], Saved.from_tensors(tensors), ctx.spans, ctx.scoring)
        dq_THK.copy_(grads_qkv[0])
        dk_TGK.copy_(grads_qkv[1])
        if heads.rotary:
            rope_(dq_THK, cos_TK, sin_TK, inverse=True)
            rope_(dk_TGK, cos_TK, sin_TK, inverse=True)
        v_grad_TGK = grads_qkv[2]
        if heads.k_norm is not None:
            q_THK, k_TGK, v_TGK = heads.split(qkv_TM)
            dq_THK.copy_(_norm_heads_backward(dq_THK, q_THK, heads.q_norm, q_rstd))
            dk_TGK.copy_(_norm_heads_backward(dk_TGK, k_TGK, heads.k_norm, k_rstd))
            if heads.v_norm is not None:
                v_grad_TGK = _norm_heads_backward(v_grad_TGK, v_TGK, heads.v_norm, v_rstd)
        if heads.keys_are_values:
            dk_TGK.add_(v_grad_TGK)
        else:
            dv_TGK.copy_(v_grad_TGK)
        return dqkv_TM, None, None, None, None, None


def norm_heads(x_TXK: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
    """Every head normed, in memory of its own, and ``1 / rms`` of each, heads within tokens."""
    assert norm is not None
    return rms_norm_forward(x_TXK, norm.weight_I, norm.eps, norm.offset)


def _norm_heads_backward(dy_TXK: Tensor, x_TXK: Tensor, norm: Norm, rstd: Tensor, out: Tensor | None = None) -> Tensor:
    return rms_norm_backward(dy_TXK, x_TXK, norm.weight_I, rstd, norm.offset, out)
