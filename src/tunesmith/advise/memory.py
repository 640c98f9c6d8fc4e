"""Memory and time of a LoRA run, roughly, from the numbers in ``config.json`` alone.

What is counted, in bytes of one machine: the frozen weights in the form that ``base`` names; the adapter with gradient and
optimizer state; what the forward pass of one packed micro-batch keeps for the backward pass; one chunk of logits; and a
process with its libraries. What is not: fragments of the allocator, buffers of the libraries, the moment of loading. On a
GPU that is little: for 8B parameters at 2,048 tokens with recomputed layers this says 18.4 GB in bf16 and 8.0 in NF4, where
torchtune's README reports 17.4 and 7.9. On a CPU it is much: the one run whose peak is written down (135M parameters in
bf16, docs/LOG.md) took 3.7 GB where this says 1.6. So a machine passes when 1.25 times the estimate fits a GPU or 2.5 times
a CPU's memory, and is refused only when the estimate itself does not.

Time is 4 floating-point operations a weight and token (2 forward, 2 for the gradient of the input: a frozen weight has no
gradient of its own), by a rate that was measured in a real run. It is good to a factor of two or three.

Refused: a table of known models. It is wrong for the next one, and a configuration says all that is needed.

Sources: NF4 is 4 bits and, with doubly quantised constants, 0.127 more (Dettmers et al. 2023, section 3). Rates: 308
tokens/s at 135M parameters on two cores (docs/LOG.md) are 83 GFLOP/s a core in bf16, 175 in fp32 are 47; an RTX 4090 at
3,083 tokens/s with 8B parameters (torchtune's README) is 99 TFLOP/s, and half of that is taken for a GPU.
"""

from dataclasses import dataclass

from tunesmith.recipe import Lora, TrainSettings
from tunesmith.rundir.records import Json
from tunesmith.rundir.records.advice import Device

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "nf4": (4.0 + 8.0 / 64 + 32.0 / (64 * 256)) / 8.0}
COMPUTE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
PROCESS = 700 * 10**6  # torch, transformers and a tokenizer, loaded: the peak of the render stage of the demo
POLICIES = ("none", "attention", "mlp", "layer")  # of train.recompute: each keeps less and computes more again
LOGIT_ROWS = 256  # rows of logits alive at once, in fp32 (kernels/cross_entropy.py)
OPTIMIZER_STATE = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
HEADROOM: dict[Device, float] = {"gpu": 1.25, "cpu": 2.5, "unknown": 2.5}
FLOPS_PER_CORE = 50e9
FLOPS_OF_A_GPU = 50e12
REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
OPTIONAL = (
    *_EXPERTS,
    "head_dim",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts_per_tok",
    "shared_expert_intermediate_size",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a decoder-only transformer.

    Attributes:
        hidden, layers, vocab: as the configuration says.
        query, key_value: width of all query heads, and of all key (or value) heads.
        intermediate: width of the dense MLP, or of one expert.
        experts: experts a layer, 0 for a dense model; ``chosen``: experts a token passes.
        shared: width of the MLP that every token passes beside its experts.
        tied: whether the head is the embedding.
        per_layer: weights of a table that feeds every layer.
    """

    hidden: int
    layers: int
    vocab: int
    query: int
    key_value: int
    intermediate: int
    experts: int
    chosen: int
    shared: int
    tied: bool
    per_layer: int

    @property
    def linear(self) -> int:
        """Weights of the linear layers of all decoder layers: what ``base`` decides about."""
        attention = self.hidden * (2 * self.query + 2 * self.key_value)
        mlp = 3 * self.hidden * (max(1, self.experts) * self.intermediate + self.shared)
        return self.layers * (attention + mlp + self.hidden * self.experts)

    @property
    def used(self) -> int:
        """Weights that a token is multiplied with, the head included: what time depends on."""
        idle = 3 * self.hidden * self.intermediate * max(0, self.experts - self.chosen)
        return self.linear - self.layers * idle + self.hidden * self.vocab

    @property
    def embedding(self) -> int:
        """Weights of embedding, head and per-layer table, which stay in the dtype of the products."""
        return self.hidden * self.vocab * (1 if self.tied else 2) + self.per_layer

    @property
    def parameters(self) -> int:
        """All weights, norms aside (a thousandth)."""
        return self.linear + self.embedding

    @property
    def adapter_per_rank(self) -> int:
        """Trained weights of a rank-1 adapter on all linear layers."""
        attention = 4 * self.hidden + 2 * self.query + 2 * self.key_value
        mlp = 3 * (self.hidden + self.intermediate) * max(1, self.experts)
        shared = 3 * (self.hidden + self.shared) if self.shared else 0
        return self.layers * (attention + mlp + shared)


def shape_of(config: Json) -> Shape | str:
    """Sizes from a parsed ``config.json`` (of a multimodal model: from its text part).

    Returns:
        The shape, or the name of a key that is missing or no number: such a model is not estimated.
    """
    part = config.get("text_config")
    text = part if isinstance(part, dict) else config
    sizes = {key: value for key, value in text.items() if isinstance(value, int)}
    odd = (key for key in (*REQUIRED, *OPTIONAL) if key not in sizes and (key in REQUIRED or text.get(key) is not None))
    if key := next(odd, None):
        return key
    hidden, heads, layers = (sizes[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    experts = next((sizes[key] for key in _EXPERTS if sizes.get(key)), 0)
    dense = sizes.get("intermediate_size") or 4 * hidden
    head_dim = sizes.get("head_dim") or hidden // heads
    per_layer = sizes.get("hidden_size_per_layer_input", 0) * sizes.get("vocab_size_per_layer_input", 0) * layers
    return Shape(
        hidden=hidden,
        layers=layers,
        vocab=sizes["vocab_size"],
        query=heads * head_dim,
        key_value=(sizes.get("num_key_value_heads") or heads) * head_dim,
        intermediate=(sizes.get("moe_intermediate_size") or dense) if experts else dense,
        experts=experts,
        chosen=sizes.get("num_experts_per_tok") or 1,
        shared=sizes.get("shared_expert_intermediate_size", 0),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
        per_layer=per_layer,
    )


def training_bytes(shape: Shape, base: str, compute: str, lora: Lora, train: TrainSettings) -> int:
    """Bytes of a training run.

    Args:
        base: ``fp32``, ``bf16``, ``fp16`` or ``nf4``.
        compute: dtype of the products, the same but ``nf4``.
        lora: read for ``r`` (its ``target_modules`` are taken for all linear layers: an upper bound).
        train: read for ``optimizer``, ``max_length``, ``tokens_per_step`` and ``recompute``.
    """
    width = COMPUTE_BYTES[compute]
    weights = shape.linear * BYTES[base] + shape.embedding * width
    adapter = lora.r * shape.adapter_per_rank * (4 + 4 + OPTIMIZER_STATE[train.optimizer])
    tokens = min(train.max_length, train.tokens_per_step)
    activations = tokens * width * _activations(shape, train.recompute)
    logits = LOGIT_ROWS * shape.vocab * 4
    return int(weights + adapter + activations + logits) + PROCESS


def first_that_fits(shape: Shape, base: str, compute: str, lora: Lora, train: TrainSettings, room: int) -> str:
    """What ``train.recompute: auto`` comes to on a GPU: the first policy that fits with headroom, or the smallest.

    Args:
        base, compute, lora, train: as of ``training_bytes``.
        room: bytes that the GPU has for it.
    """
    for policy in POLICIES:
        settings = train.model_copy(update={"recompute": policy})
        if training_bytes(shape, base, compute, lora, settings) * HEADROOM["gpu"] <= room:
            return policy
    return POLICIES[-1]


def _activations(shape: Shape, recompute: str | int) -> float:
    """Numbers that the forward pass keeps for one token: what the gradients of our modules read."""
    attention = 2 * shape.hidden + 2 * shape.query + 2 * shape.key_value
    mlp = 2 * shape.hidden + 3 * (shape.intermediate * max(1, shape.chosen if shape.experts else 1) + shape.shared)
    whole = attention + mlp
    if recompute == "layer":
        return shape.layers * shape.hidden + whole
    if recompute == "attention":
        return shape.layers * (shape.hidden + mlp) + attention
    if recompute == "mlp":
        return shape.layers * (shape.hidden + attention) + mlp
    if isinstance(recompute, int):
        again = shape.layers // recompute
        return (shape.layers - again) * whole + again * shape.hidden + whole
    return shape.layers * whole


def training_hours(shape: Shape, tokens: float, epochs: int, gpu: bool, cores: int) -> float:
    """Hours of training on ``tokens`` tokens an epoch, to a factor of two or three."""
    rate = FLOPS_OF_A_GPU if gpu else FLOPS_PER_CORE * cores
    return 4.0 * shape.used * tokens * epochs / rate / 3600.0
