"""One document over several processes: each has a run of its tokens, and in attention some heads of all of them.

Everything in a decoder layer but attention knows one token at a time, so n processes can each have an nth of the tokens. Before
attention they exchange: each gives away the heads that are not its own and gets its own heads of all tokens; behind it they
exchange back (Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv 2309.14509, section 3). Attention itself is computed as ever, with
all its spans, windows and shared beginnings. What is sent is four times the hidden size a token and layer, whatever n is; what
a process keeps for its gradients is an nth.

Key/value heads that are fewer than processes are sent to all that need them. Where T is all tokens, X is a share of the heads.

Shape suffixes: H query heads, G key/value heads, T tokens, P some of the rows (those of this process), K head dimension; here:
X is H or G.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.kernels.attention import ScoreParams, Span
from tunesmith.launch.group import Part

Move = Callable[[Tensor, Part], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, list[Span], ScoreParams], Tensor]


def heads_apart(
    attend: Attend, part: Part, q_PHK: Tensor, k_PGK: Tensor, v_PGK: Tensor, spans: list[Span], scoring: ScoreParams
) -> Tensor:
    """Attention of tokens that several processes have.

    Args:
        attend: computes it where all tokens are.
        part: the processes that have the pack, each as many tokens.
        q_PHK, k_PGK, v_PGK: of this process's tokens.
        spans: of the whole pack.

    Returns:
        Output of shape (P, H, K).
    """
    copies = max(1, part.size // k_PGK.shape[1])
    if copies > 1:
        k_PGK, v_PGK = (x.repeat_interleave(copies, dim=1) for x in (k_PGK, v_PGK))
    q_TXK, k_TXK, v_TXK = (_Exchange.apply(x, part, _to_heads, _to_tokens) for x in (q_PHK, k_PGK, v_PGK))
    if scoring.sinks_H is not None:
        scoring = replace(scoring, sinks_H=scoring.sinks_H.chunk(part.size)[part.rank])
    return _Exchange.apply(attend(q_TXK, k_TXK, v_TXK, spans, scoring), part, _to_tokens, _to_heads)


def refuse_heads(name: str, heads: int, kv_heads: int, size: int) -> None:
    """Refuse a number of processes that a layer's heads cannot be dealt out to.

    Raises:
        ModelError: with the numbers that can be.
    """
    if _fits(heads, kv_heads, size):
        return
    known = [str(number) for number in range(1, heads + 1) if _fits(heads, kv_heads, number)]
    raise ModelError(
        f"train.sequence_parallel: {size}, but {name} has {heads} query heads and {kv_heads} key/value heads",
        f"one of {', '.join(known)}",
    )


def _fits(heads: int, kv_heads: int, size: int) -> bool:
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


class _Exchange(torch.autograd.Function):
    """Heads for tokens, or the other way; backwards the reverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Part, there: Move, back: Move) -> Tensor:
        ctx.part, ctx.back = part, back
        return there(x, part)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grads[0], ctx.part), None, None, None


def _to_heads(x_PXK: Tensor, part: Part) -> Tensor:
    """All heads of some tokens to some heads of all tokens."""
    tokens, heads, width = x_PXK.shape
    own = heads // part.size
    return part.exchange(x_PXK.unflatten(1, (part.size, own)).transpose(0, 1)).reshape(part.size * tokens, own, width)


def _to_tokens(x_TXK: Tensor, part: Part) -> Tensor:
    """Some heads of all tokens to all heads of some tokens."""
    return part.exchange(x_TXK.unflatten(0, (part.size, -1))).transpose(0, 1).flatten(1, 2)
