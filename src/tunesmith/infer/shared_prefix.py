"""Attention of many rows over one shared beginning, and the cache that goes with it.

An evaluation asks the same instruction and demonstrations hundreds of times. Repeating their keys and values for every
row of a batch (what a stock cache needs) made decoding read and copy a gigabyte a token. Here they exist once: the
queries of all rows meet the shared keys in one matrix product per head, their own keys in another, and one softmax
spans both (the idea of Hydragen, Juravsky et al. 2024, section 3, without its split softmax: at these sizes the scores
fit). The rows' own keys live in a buffer that is allocated once and written in place.

The buffer is handed out in steps of ``STEP`` tokens, the rest masked. A length of its own for every token would be a new
shape of product at every token, and oneDNN compiles and keeps a kernel for every shape of a bf16 product: 8 GB after two
batches of 96 tokens (docs/LOG.md).

What a layer asks of its attention is done or refused: sliding windows, soft-capped scores, sinks; layers that read the
keys of an earlier layer get that layer's, because the shared keys are recorded where attention sees them.

Registered under transformers' public ``AttentionInterface``.

Shape suffixes: B rows, H query heads, G key/value heads, J query heads of each, S new tokens, P shared tokens, C own
tokens so far (padded to a multiple of ``STEP``), K head dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from tunesmith.kernels.attention import Span
from tunesmith.models.attention import packed_attention
from tunesmith.models.load import attention

SHARED_PREFIX, RECORDED = "tunesmith_shared_prefix", "tunesmith_recorded"
STEP = 32
MIN_SHARED = 8  # tokens of a common beginning from which computing it once is worth a forward pass of its own
Prefix = dict[int, tuple[Tensor, Tensor]]  # layer -> keys and values, shape (G, P, K); empty where nothing is shared


class RowCache(DynamicCache):
    """The rows' own keys and values: one buffer, written in place.

    Args:
        rows: B.
        capacity: most tokens a row will hold.
    """

    def __init__(self, rows: int, capacity: int):
        super().__init__()
        self._shape = (rows, _rounded(capacity))
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.filled = 0  # tokens held before the forward pass now running

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append shape (B, G, S, K); returns all own keys and values, shape (B, G, C, K), zeros after the last token."""
        if layer_idx not in self._buffers:
            rows, capacity = self._shape
            shape = (rows, key_states.shape[1], capacity, key_states.shape[3])
            self._buffers[layer_idx] = (key_states.new_zeros(shape), value_states.new_zeros(shape))
        end = self.filled + key_states.shape[2]
        keys, values = self._buffers[layer_idx]
        keys[:, :, self.filled : end] = key_states
        values[:, :, self.filled : end] = value_states
        return keys[:, :, : _rounded(end)], values[:, :, : _rounded(end)]

    def keep_rows(self, keep: Tensor) -> None:
        """Forget all rows but ``keep``."""
        self._buffers = {layer: (k[keep], v[keep]) for layer, (k, v) in self._buffers.items()}


def shared_prefix_attention(
    module: nn.Module,
    query_BHSK: Tensor,
    key_BGCK: Tensor,
    value_BGCK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    prefix: Prefix,
    allowed_BSC: Tensor,
    seen_from_BS: Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of S new tokens a row over the shared prefix and the row's own tokens.

    Args:
        prefix: shared keys and values by layer.
        allowed_BSC: bool, which own tokens each new token may see (causality and left padding), the window aside; as many
            columns as there are tokens.
        seen_from_BS: position of each new token, the shared ones counted.
        sliding_window: tokens that a token sees, itself included.
        softcap: of the scores.
        s_aux: logit of each head's sink, shape (H,).

    Returns:
        Output of shape (B, S, H, K), and None in the place of the attention weights.
    """
    assert attention_mask is None
    B, H, S, K = query_BHSK.shape
    G, C = key_BGCK.shape[1:3]
    tokens = allowed_BSC.shape[2]
    query_BGJSK = query_BHSK.reshape(B, G, H // G, S, K) * scaling
    allowed_BSC = F.pad(allowed_BSC.expand(B, S, tokens), (0, C - tokens))
    scores = torch.einsum("bgjsk,bgck->bgjsc", query_BGJSK, key_BGCK)
    common = prefix.get(module.layer_idx)  # type: ignore[call-overload]
    shared = 0 if common is None else common[0].shape[1]
    if common is not None:
        scores = torch.cat([torch.einsum("bgjsk,gpk->bgjsp", query_BGJSK, common[0]), scores], -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if sliding_window is not None:
        device = query_BHSK.device
        behind_SC = torch.arange(tokens - S, tokens, device=device)[:, None] - torch.arange(C, device=device)
        near_BSP = seen_from_BS[:, :, None] - torch.arange(shared, device=device) < sliding_window
        allowed_BSX = torch.cat([near_BSP, allowed_BSC & (behind_SC < sliding_window)], -1)
        scores = scores.masked_fill(~allowed_BSX[:, None, None], -torch.inf)
    else:
        scores[..., shared:].masked_fill_(~allowed_BSC[:, None, None], -torch.inf)
    if s_aux is not None:
        sink = s_aux.view(1, G, H // G, 1, 1).expand(B, -1, -1, S, -1).to(scores.dtype)
        scores = torch.cat([scores, sink], -1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query_BHSK.dtype)
    out = torch.einsum("bgjsc,bgck->bgjsk", weights[..., shared : shared + C], value_BGCK)
    if common is not None:
        out = out + torch.einsum("bgjsp,gpk->bgjsk", weights[..., :shared], common[1])
    return out.reshape(B, H, S, K).transpose(1, 2).contiguous(), None


def recorded_attention(
    module: nn.Module,
    query_1HPK: Tensor,
    key_1GPK: Tensor,
    value_1GPK: Tensor,
    attention_mask: Tensor | None,
    *,
    record: Prefix,
    **asked: Any,
) -> tuple[Tensor, None]:
    """``packed_attention``, with the layer's keys and values kept in ``record``."""
    record[module.layer_idx] = (key_1GPK[0], value_1GPK[0])  # type: ignore[index]
    return packed_attention(module, query_1HPK, key_1GPK, value_1GPK, attention_mask, **asked)


def compute_prefix(model: PreTrainedModel, ids: list[int]) -> Prefix:
    """Keys and values of a shared beginning as each layer's attention sees them, computed once."""
    record: Prefix = {}
    with attention(model, RECORDED):
        model.base_model(
            input_ids=torch.tensor([ids], device=model.device), spans=[Span(0, len(ids), 0, 0)], record=record, use_cache=False
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


def _rounded(tokens: int) -> int:
    return -(-tokens // STEP) * STEP


for _name, _function in ((SHARED_PREFIX, shared_prefix_attention), (RECORDED, recorded_attention)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, lambda *_, **__: None)
