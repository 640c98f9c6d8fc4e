"""Attention of a fused model that answers: one product for q, k and v, then the attention function of whoever asks.

A model that answers on a GPU is bound by launches as much as by bytes: stock modules start a hundred small kernels a layer
for one token. Here norm, projections and positions are those of training (``layers/attention.py``), which take a fifth of
them; keys and values go to the cache, and scores are made by the function that is registered under the model's present
implementation (``models/attention.py`` and the engines), as stock modules do it. So whatever decodes or scores a stock model
decodes and scores this one.

An implementation of transformers' own, which an engine asks for where it looks at a model from outside, is one row that sees
itself causally. On a CPU models answer with their stock modules: launches cost nothing there, and bytes stay what they were.

Shape suffixes: T tokens, B rows of a batch, D hidden size, M outputs of a group, H query heads, G key/value heads, K head
dimension; here: X is H or G.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.kernels.attention import Span
from tunesmith.kernels.rope import rope_
from tunesmith.layers.attention import FusedAttention, norm_heads
from tunesmith.layers.lora import Norm
from tunesmith.models.attention import packed_attention

OURS = "tunesmith_"  # how the names of our attention functions begin


class AnsweringAttention(FusedAttention):
    """Attention of one layer, for decoding and scoring; it has no gradient.

    Args:
        config: of the model; it names the attention function at any moment.
        layer_idx: number of the layer, under which caches know it.
        arguments: of ``FusedAttention``.
    """

    def __init__(self, config: Any, layer_idx: int, **arguments: Any):
        super().__init__(**arguments)
        self.config, self.layer_idx = config, layer_idx

    @torch.no_grad()
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # a cache and the engines' words instead of spans
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        shared_kv_states: MutableMapping[str, tuple[Tensor, Tensor]] | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        """Shape (B, T, D) to (B, T, D), and None in the place of attention weights.

        Args:
            position_embeddings: cosines and sines of the positions, shape (B or 1, T, K or less).
            attention_mask: for the attention function.
            past_key_values: the cache that new keys and values go to.
            shared_kv_states: keys and values of layers before this one.
            arguments: for the attention function.
        """
        rows, tokens = hidden_states.shape[:2]
        heads, shared, scoring = self.heads, self.shared, self.scoring
        cos_TK, sin_TK = (part.expand(rows, -1, -1).flatten(0, 1) for part in position_embeddings)
        if heads.half_cosines:
            cos_TK, sin_TK = torch.cat([cos_TK, cos_TK], 1), torch.cat([sin_TK, sin_TK], 1)
        qkv_TM = self.qkv(hidden_states.flatten(0, 1), self.norm)
        # Where they stand, or where the norms wrote them: nobody else has them.
        if heads.rotary and heads.q_norm is None:
            rope_(qkv_TM.unflatten(1, (-1, heads.head_dim))[:, : heads.num_heads + heads.num_kv_heads], cos_TK, sin_TK)

        def ready(x_TXK: Tensor, norm: Norm | None, turned: bool) -> Tensor:
            """Normed and turned, shape (B, X, T, K)."""
            if norm is not None:
                x_TXK = norm_heads(x_TXK, norm)[0]
                x_TXK = rope_(x_TXK, cos_TK, sin_TK) if turned else x_TXK
            return x_TXK.unflatten(0, (rows, tokens)).transpose(1, 2)

        q_THK, k_TGK, v_TGK = heads.split(qkv_TM)
        query = ready(q_THK, heads.q_norm, heads.rotary)
        if shared is None or shared.writes:
            key, value = ready(k_TGK, heads.k_norm, heads.rotary), ready(v_TGK, heads.v_norm, False)
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
            if shared is not None and shared_kv_states is not None:
                shared_kv_states[shared.name] = key, value
        else:
            assert shared_kv_states is not None, "the decoder layer hands no keys and values down"
            key, value = shared_kv_states[shared.name]
        name = self.config._attn_implementation
        attend, mask = ALL_ATTENTION_FUNCTIONS.get(name), attention_mask
        if attend is None or not name.startswith(OURS):
            assert rows == 1 and past_key_values is None, "several rows, or a cache, are an engine's"
            attend, mask, arguments = packed_attention, None, {"spans": [Span(0, tokens, 0, 0)]}
        limits = {"sliding_window": scoring.window, "softcap": scoring.softcap, "s_aux": scoring.sinks_H}
        out_BTHK, _ = attend(self, query, key, value, mask, scaling=scoring.scale, **limits, **arguments)
        return self.o_proj(out_BTHK.reshape(rows, tokens, -1)), None
