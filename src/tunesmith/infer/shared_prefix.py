"""Attention of many rows over one shared beginning, and the cache that goes with it.

An evaluation asks the same instruction and demonstrations hundreds of times. Repeating their keys and values for every
row of a batch (what a stock cache needs) made decoding read and copy a gigabyte a token. Here they exist once: the
queries of all rows meet the shared keys in one matrix product per head, their own keys in another, and one softmax
spans both (the idea of Hydragen, Juravsky et al. 2024, section 3, without its split softmax: at these sizes the scores
fit). The rows' own keys live in a buffer that is allocated once and written in place.

Registered under transformers' public ``AttentionInterface``. Full causal attention only; anything else is refused.

Shape suffixes: B rows, H query heads, G key/value heads, S new tokens, P shared tokens, C own tokens so far, K head dim.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from tunesmith.models.attention import refuse_variants

SHARED_PREFIX = "tunesmith_shared_prefix"
Prefix = list[tuple[Tensor, Tensor]]  # keys and values of each layer, shape (1, G, P, K)


class RowCache(DynamicCache):
    """The rows' own keys and values: one buffer, written in place.

    Args:
        rows: B.
        capacity: most tokens a row will hold.
    """

    def __init__(self, rows: int, capacity: int):
        super().__init__()
        self._shape = (rows, capacity)
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.filled = 0  # tokens held before the forward pass now running

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append shape (B, G, S, K); returns all own keys and values, shape (B, G, C, K)."""
        if layer_idx not in self._buffers:
            rows, capacity = self._shape
            shape = (rows, key_states.shape[1], capacity, key_states.shape[3])
            self._buffers[layer_idx] = (key_states.new_empty(shape), value_states.new_empty(shape))
        end = self.filled + key_states.shape[2]
        keys, values = self._buffers[layer_idx]
        keys[:, :, self.filled : end] = key_states
        values[:, :, self.filled : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

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
    **variants: Any,
) -> tuple[Tensor, None]:
    """Attention of S new tokens a row over the shared prefix and the row's own tokens.

    Args:
        prefix: shared keys and values by layer; empty when nothing is shared.
        allowed_BSC: bool, which own tokens each new token may see (causality and left padding).

    Returns:
        Output of shape (B, S, H, K), and None in the place of the attention weights.
    """
    assert attention_mask is None
    refuse_variants(variants, longest=0)
    B, H, S, K = query_BHSK.shape
    G = key_BGCK.shape[1]
    query = query_BHSK.reshape(B, G, H // G, S, K) * scaling
    own = torch.einsum("bghsk,bgck->bghsc", query, key_BGCK)
    own = own.masked_fill(~allowed_BSC[:, None, None], float("-inf"))
    if not prefix:
        weights = torch.softmax(own, dim=-1, dtype=torch.float32).to(query.dtype)
        out = torch.einsum("bghsc,bgck->bghsk", weights, value_BGCK)
    else:
        keys_GPK, values_GPK = (shared[0] for shared in prefix[module.layer_idx])  # type: ignore[index]
        scores = torch.cat([torch.einsum("bghsk,gpk->bghsp", query, keys_GPK), own], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        of_prefix, of_own = weights.split([keys_GPK.shape[1], own.shape[-1]], dim=-1)
        out = torch.einsum("bghsp,gpk->bghsk", of_prefix, values_GPK)
        out = out + torch.einsum("bghsc,bgck->bghsk", of_own, value_BGCK)
    return out.reshape(B, H, S, K).transpose(1, 2).contiguous(), None


def compute_prefix(model: PreTrainedModel, ids: list[int]) -> Prefix:
    """Keys and values of a shared beginning, computed once with the model's stock attention."""
    cache = DynamicCache(config=model.config)
    model.base_model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc]


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, lambda *_, **__: None)
