"""Sizes of a decoder-only transformer, layer by layer, from its ``config.json`` alone.

Layers of one model differ: windows and whole views take turns and may have heads of another width, some layers read keys that
another made, some have an MLP twice as wide. What a step keeps of a layer depends on all of that, so a shape holds a record of
each layer and not a mean. What a configuration does not say (norms of heads, norms after the blocks) is a fact of the family
(``families.py``).

Refused: a table of known models. It is wrong for the next one, and a configuration says all that is needed.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TypeGuard

from tunesmith.errors import ModelError, damage_named
from tunesmith.families import FAMILIES, WRAPPERS
from tunesmith.rundir.records import Json

LARGEST, DEEPEST = 2**24, 2**12  # of any size, and of the number of layers; what is beyond is no model
REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
OPTIONAL = (
    *EXPERTS,
    "head_dim",
    "global_head_dim",
    "num_key_value_heads",
    "num_global_key_value_heads",
    "num_kv_shared_layers",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts_per_tok",
    "top_k_experts",
    "shared_expert_intermediate_size",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
    "sliding_window",
)
WHOLE = "full_attention"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Sizes of one decoder layer.

    Attributes:
        heads, kv_heads: query heads, and key (or value) heads that it makes itself: 0 where it reads another layer's.
        head_dim: features of a head.
        seen_kv_heads: key heads that its queries meet, its own or another layer's.
        writes: another layer reads its keys and values.
        keys_are_values: values are what the key layer makes.
        window: tokens that a token sees; None for all.
        qk_norm, v_norm: heads are normed.
        intermediate: width of the MLP, 0 where experts stand in its place.
        experts, chosen, expert: experts, how many a token passes, and the width of one.
        shared: width of the MLP that every token passes beside its experts.
        after: norms that stand after the blocks.
        biases: q, k and v have a bias.
        fused: the projections of one input are one layer with one A (of attention, of the MLP).
        per_layer: width of an input of its own.
    """

    heads: int
    kv_heads: int
    head_dim: int
    seen_kv_heads: int
    writes: bool = False
    keys_are_values: bool = False
    window: int | None = None
    qk_norm: bool = False
    v_norm: bool = False
    intermediate: int
    experts: int = 0
    chosen: int = 0
    expert: int = 0
    shared: int = 0
    after: int = 0
    biases: bool = False
    fused: bool = False
    per_layer: int = 0

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads that it makes."""
        return self.kv_heads * self.head_dim

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Widths of what the projections of attention make, side by side."""
        if not self.kv_heads:
            return (self.query,)
        keys = (self.key_value,) * (1 if self.keys_are_values else 2)
        return (self.query + sum(keys),) if self.fused else (self.query, *keys)

    @cached_property
    def gates(self) -> tuple[int, ...]:
        """Widths of what the first projections of the MLP make."""
        return (2 * self.intermediate,) if self.fused else (self.intermediate,) * 2

    def linear(self, hidden: int) -> int:
        """Weights of its linear layers and experts, the router aside: what ``base`` decides about."""
        attention = hidden * (sum(self.inputs) + self.query)
        return attention + 3 * hidden * (self.intermediate + self.experts * self.expert + self.shared)

    def adapter(self, hidden: int) -> int:
        """Trained weights of rank 1 on all of them."""
        attention = sum(hidden + width for width in self.inputs) + self.query + hidden
        mlp = sum(hidden + width for width in self.gates) + self.intermediate + hidden if self.intermediate else 0
        expert = 3 * (hidden + self.expert) * self.experts
        return attention + mlp + expert + (3 * (hidden + self.shared) if self.shared else 0)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model.

    Attributes:
        hidden, vocab: as the configuration says.
        layers: in order.
        tied: the head is the embedding.
        head_bias: the head has a bias.
        per_layer: weights of a table that feeds every layer.
        known: the family's layers are computed by our modules; else by stock ones, which keep more.
        narrow: the last layer is computed for the rows that are read.
        scaled: rows of the embedding are multiplied by a factor.
    """

    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    tied: bool
    head_bias: bool = False
    per_layer: int = 0
    known: bool = True
    narrow: bool = True
    scaled: bool = False

    @cached_property
    def kinds(self) -> tuple[tuple[Layer, int], ...]:
        """Layers that differ, and how often each comes."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def stretches(self) -> tuple[tuple[Layer, int], ...]:
        """Neighbours that are alike as one layer and their number, in order."""
        return tuple((layer, sum(1 for _ in alike)) for layer, alike in groupby(self.layers))

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @cached_property
    def linear(self) -> int:
        """Weights of the linear layers of all decoder layers: what ``base`` decides about."""
        return sum(count * layer.linear(self.hidden) for layer, count in self.kinds)

    @cached_property
    def expert_weights(self) -> int:
        """Those of them that are experts' own."""
        return sum(3 * self.hidden * layer.expert * layer.experts for layer in self.layers)

    @cached_property
    def routers(self) -> int:
        """Weights of the layers that choose experts."""
        return sum(self.hidden * layer.experts for layer in self.layers)

    @cached_property
    def used(self) -> int:
        """Weights that a token is multiplied with, the head included: what time depends on."""
        idle = sum(3 * self.hidden * layer.expert * max(0, layer.experts - layer.chosen) for layer in self.layers)
        return self.linear + self.routers - idle + self.hidden * self.vocab

    @property
    def embedding(self) -> int:
        """Weights of embedding, head and per-layer table."""
        return self.hidden * self.vocab * (1 if self.tied else 2) + self.per_layer

    @cached_property
    def projections(self) -> int:
        """Weights of the layers that take the input of its own into every layer; they stay in the dtype of the products."""
        width = self.layers[0].per_layer
        return 3 * self.depth * width * self.hidden

    @cached_property
    def norms(self) -> int:
        """Weights of norms."""
        heads = sum(layer.head_dim * (layer.qk_norm * (2 if layer.kv_heads else 1)) for layer in self.layers)
        mixed = sum(layer.per_layer > 0 for layer in self.layers)
        return self.hidden * (1 + mixed + sum(2 + layer.after for layer in self.layers)) + heads + self.layers[0].per_layer

    @cached_property
    def parameters(self) -> int:
        """All weights, norms aside (a thousandth)."""
        return self.linear + self.routers + self.embedding + self.projections

    @cached_property
    def adapter_per_rank(self) -> int:
        """Trained weights of a rank-1 adapter on all linear layers."""
        return sum(count * layer.adapter(self.hidden) for layer, count in self.kinds)


def is_size(value: object) -> TypeGuard[int]:
    """Whether a value of a configuration is a size that a model can have: a whole number that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def shape_of(config: Json) -> Shape | str:
    """Sizes from a parsed ``config.json`` (of a multimodal model: from its text part).

    Returns:
        The shape, or the name of a key that is missing or no such number: such a model is not estimated.
    """
    part = config.get("text_config")
    text = part if isinstance(part, dict) else config
    sizes = {key: value for key, value in text.items() if is_size(value)}
    odd = (key for key in (*REQUIRED, *OPTIONAL) if key not in sizes and (key in REQUIRED or text.get(key) is not None))
    if key := next(odd, None) or next((key for key in REQUIRED if sizes[key] < 1), None):
        return key
    if (depth := sizes["num_hidden_layers"]) > DEEPEST:
        return "num_hidden_layers"
    name = str(text.get("model_type") or config.get("model_type"))
    family = FAMILIES.get(WRAPPERS[name].family if name in WRAPPERS else name)
    layers = tuple(_layer(text, sizes, name, number) for number in range(depth))
    plain = all(layer.intermediate and not layer.experts and not layer.per_layer for layer in layers)
    scales = family is not None and family.v_norm  # such layers end in a scale of their own
    return Shape(
        hidden=sizes["hidden_size"],
        vocab=sizes["vocab_size"],
        layers=layers,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
        per_layer=sizes.get("hidden_size_per_layer_input", 0) * sizes.get("vocab_size_per_layer_input", 0) * depth,
        known=family is not None,
        narrow=family is not None and plain and not scales,
        scaled=family is not None and bool(family.post_norms),
    )


def read_shape(directory: Path) -> Shape | str:
    """Sizes of the model in a directory; as ``shape_of``.

    Raises:
        ModelError: a configuration that cannot be read, or sizes that are none.
    """
    with damage_named(ModelError, f"{directory}: its configuration cannot be understood", "get its config.json again"):
        return shape_of(json.loads((directory / "config.json").read_text(encoding="utf-8")))


def _layer(text: Json, sizes: dict[str, int], name: str, number: int) -> Layer:
    """One layer by its number."""
    family = FAMILIES.get(WRAPPERS[name].family if name in WRAPPERS else name)
    depth, hidden, heads = (sizes[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    kinds = text.get("layer_types")
    kind = str(kinds[number]) if isinstance(kinds, list) and len(kinds) == depth else WHOLE
    head_dim, kv_heads = sizes.get("head_dim") or hidden // heads, sizes.get("num_key_value_heads") or heads
    same = kind == WHOLE and family is not None and family.keys_are_values and bool(text.get("attention_k_eq_v"))
    if kind == WHOLE:
        head_dim = sizes.get("global_head_dim") or head_dim
        kv_heads = (sizes.get("num_global_key_value_heads") or kv_heads) if same else kv_heads
    shared = sizes.get("num_kv_shared_layers", 0) if family is not None and family.shared_kv else 0
    reads = number >= depth - shared > 0 and shared > 0
    writes = False
    if shared and not reads and isinstance(kinds, list):
        own = [str(other) for other in kinds[: depth - shared]]
        writes = number == len(own) - 1 - own[::-1].index(kind)
    experts = next((sizes[key] for key in EXPERTS if sizes.get(key)), 0)
    dense = sizes.get("intermediate_size") or 4 * hidden
    beside = bool(text.get("enable_moe_block"))  # experts stand beside an MLP, not in its place
    wide = 2 if reads and text.get("use_double_wide_mlp") else 1
    windowed = family is not None and (family.window == "config" or (family.window == "layer" and kind != WHOLE))
    return Layer(
        heads=heads,
        kv_heads=0 if reads else kv_heads,
        head_dim=head_dim,
        seen_kv_heads=kv_heads,
        writes=writes,
        keys_are_values=same,
        window=sizes.get("sliding_window") if windowed else None,
        qk_norm=family is not None and family.qk_norm,
        v_norm=family is not None and family.v_norm and not reads,
        intermediate=0 if experts and not beside else dense * wide,
        experts=experts,
        chosen=(sizes.get("num_experts_per_tok") or sizes.get("top_k_experts") or 1) if experts else 0,
        expert=(sizes.get("moe_intermediate_size") or dense) if experts else 0,
        shared=sizes.get("shared_expert_intermediate_size", 0),
        after=0 if family is None else len(family.post_norms) + 3 * (experts > 0 and beside),
        biases=bool(text.get("attention_bias")),
        fused=family is not None and family.fused_qkv is not None,
        per_layer=sizes.get("hidden_size_per_layer_input", 0),
    )
