"""Attention of many rows over one shared beginning: of whole rows laid end to end, then of one new token a row.

An evaluation asks the same instruction and demonstrations hundreds of times. Repeating their keys and values for every
row of a batch (what a stock cache needs) made decoding read and copy a gigabyte a token. Here they exist once: the
queries of all rows meet the shared keys in one matrix product per head, their own keys in another, and one softmax
spans both (the idea of Hydragen, Juravsky et al. 2024, section 3, without its split softmax: at these sizes the scores
fit).

Prompts are read as training reads documents, packed and without padding (``kernels/attention.py``); each is a span that
sees the shared beginning. The rows' own keys lie in bins of about one length (``engines/row_cache.py``), so a step is a
product for each bin.

What a layer asks of its attention is done or refused: sliding windows, soft-capped scores, sinks; layers that read the
keys of an earlier layer get that layer's, because the shared keys are recorded where attention sees them.

Registered under transformers' public ``AttentionInterface``.

Shape suffixes: T tokens, B rows of a batch, H query heads, G key/value heads, J query heads of each, K head dimension; here: P
shared tokens, X stretches of a pool.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.engines.row_cache import Step
from tunesmith.kernels.attention import Reach, ScoreParams, Span, gpu_kernel
from tunesmith.kernels.upload import upload
from tunesmith.models.attention import attention_behind, packed_attention
from tunesmith.models.load import attention

PREFILL, DECODE, RECORDED = "tunesmith_prefill", "tunesmith_decode", "tunesmith_recorded"
MIN_SHARED = 8  # tokens of a common beginning from which computing it once is worth a forward pass of its own
Prefix = dict[int, tuple[Tensor, Tensor]]  # layer -> keys and values, shape (G, P, K); empty where nothing is shared


def prefill_attention(
    module: nn.Module,
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    prefix: Prefix,
    spans: list[Span],
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """``packed_attention`` of rows that also see the shared beginning.

    Args:
        scaling, sliding_window, softcap, s_aux: see ``packed_attention``.
        prefix: shared keys and values by layer.
        spans: one for each row, without prefixes of their own, in order.

    Returns:
        Output of shape (1, T, H, K), and None in the place of the attention weights.
    """
    common = prefix.get(module.layer_idx)  # type: ignore[call-overload]
    options: dict[str, Any] = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
    if common is None:
        return packed_attention(module, query_1HTK, key_1GTK, value_1GTK, attention_mask, spans=spans, **options)
    shared, scoring = common[0].shape[1], ScoreParams(scaling, sliding_window, softcap, s_aux)
    if gpu_kernel(query_1HTK, scoring) is not None:
        reaches = [Reach(at.start, at.end, ((0, shared), (at.start + shared, at.end + shared))) for at in spans]
        return attention_behind(common, query_1HTK, key_1GTK, value_1GTK, reaches, scoring), None
    behind = [Span(span.start + shared, span.end + shared, 0, shared) for span in spans]
    nothing_1HPK = query_1HTK.new_zeros(1, query_1HTK.shape[1], shared, query_1HTK.shape[3])
    query_1HXK = torch.cat([nothing_1HPK, query_1HTK], 2)
    key_1GXK, value_1GXK = (torch.cat([x[None], y], 2) for x, y in zip(common, (key_1GTK, value_1GTK), strict=True))
    out_1XHK = packed_attention(module, query_1HXK, key_1GXK, value_1GXK, attention_mask, spans=behind, **options)[0]
    return out_1XHK[:, shared:], None


def decode_attention(
    module: nn.Module,
    query_BH1K: Tensor,
    key_11XK: Tensor,
    value_11XK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    prefix: Prefix,
    step: Step,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a row over the shared beginning and the row's own tokens.

    Args:
        key_11XK, value_11XK: the layer's pools, as ``RowCache.update`` returned them.
        prefix: shared keys and values by layer.
        step: where the rows' tokens lie.
        sliding_window: tokens that a token sees, itself included.
        softcap: of the scores.
        s_aux: logit of each head's sink, shape (H,).

    Returns:
        Output of shape (B, 1, H, K), and None in the place of the attention weights.
    """
    assert attention_mask is None
    B, H, new, K = query_BH1K.shape
    G = key_11XK.shape[2] // step.slots
    query_BGJK = query_BH1K.reshape(B, G, H // G, K) * scaling
    out_BGJK = query_BGJK.new_empty(B, G, H // G, value_11XK.shape[3])
    common = prefix.get(module.layer_idx)  # type: ignore[call-overload]
    shared = 0 if common is None else common[0].shape[1]
    scores_BGJP = query_BGJK.new_empty(B, G, H // G, shared)
    if common is not None:
        scores_BGJP = torch.einsum("bgjk,gpk->bgjp", query_BGJK, common[0])
    for part in step.parts:
        rows = slice(part.first, part.last)
        scores = torch.matmul(query_BGJK[rows], part.of(key_11XK, G).mT)
        if common is not None:
            scores = torch.cat([scores_BGJP[rows], scores], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill_(step.unseen(part, shared, sliding_window)[:, None, None], -torch.inf)
        if s_aux is not None:
            sink = s_aux.view(1, G, H // G, 1).expand(len(scores), -1, -1, -1).to(scores.dtype)
            scores = torch.cat([scores, sink], -1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query_BH1K.dtype)
        scores_BGJP[rows] = weights[..., :shared]
        out_BGJK[rows] = torch.matmul(weights[..., shared : shared + part.width], part.of(value_11XK, G))
    if common is not None:
        out_BGJK += torch.einsum("bgjp,gpk->bgjk", scores_BGJP, common[1])
    return out_BGJK.view(B, new, H, -1), None


def recorded_attention(
    module: nn.Module,
    query_1HPK: Tensor,
    key_1GPK: Tensor,
    value_1GPK: Tensor,
    attention_mask: Tensor | None,
    *,
    record: Prefix,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """``packed_attention``, with the layer's keys and values kept in ``record``."""
    record[module.layer_idx] = (key_1GPK[0], value_1GPK[0])  # type: ignore[index]
    return packed_attention(module, query_1HPK, key_1GPK, value_1GPK, attention_mask, **arguments)


def compute_prefix(model: PreTrainedModel, ids: list[int]) -> Prefix:
    """Keys and values of a shared beginning as each layer's attention sees them, computed once."""
    record: Prefix = {}
    with attention(model, RECORDED):
        model.base_model(
            input_ids=upload(torch.tensor([ids]), model.device), spans=[Span(0, len(ids), 0, 0)], record=record, use_cache=False
        )
    return record


def common_beginning(ids: list[list[int]]) -> int:
    """Tokens that all texts begin with, leaving at least one of each."""
    first, last = min(ids), max(ids)  # lexicographic extremes share what all share
    limit = min(map(len, ids)) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return length


for _name, _function in ((PREFILL, prefill_attention), (DECODE, decode_attention), (RECORDED, recorded_attention)):
    AttentionInterface.register(_name, _function)
