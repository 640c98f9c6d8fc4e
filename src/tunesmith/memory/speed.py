"""How long a QLoRA step takes on a card that is not there: a prediction, written down before the measurement.

A sum of terms that can each be wrong on their own: products at the rate that large ones reach, or at the bandwidth where
that is slower; attention; weights unpacked from NF4; everything else by the bytes that it touches; the loss; the optimizer. The
host launches meanwhile, and a step takes the longer of the two. What is assumed has a name below or in ``cards.json``.

Bytes and launches are those of our own step, which ``tests/gpu_path`` walks without a GPU: products and unpacking are
counted exactly, and ``COPIES`` says how often the rest touches what it must. A test holds both to the walk's budgets.

Of a mixture a token is multiplied with the experts that it chose, and all experts are unpacked and read, by the grouped product
(``layers/grouped_experts.py``). Of a layer with a window a token sees no more than that of its document.

Refused: a rate a card that is fitted to the tokens a second that others report. It would be right for their step.
Left out: kernels that overlap, the tail of a launch that does not fill the chip, a card that gets hot, the choice of experts
and how unevenly it falls, mixtures in fp16 (one expert after another).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from tunesmith.memory.cards import Card
from tunesmith.memory.dials import BYTES
from tunesmith.memory.shape import Shape

Recompute = Literal["none", "layer"]
NF4 = BYTES["nf4"]
WIDTH = 2  # bytes of a number between two products
# Launches a layer and pack, by dtype of the products and what is recomputed: the budgets of tests/gpu_path.
LAUNCHES: dict[tuple[str, Recompute], int] = {("bf16", "none"): 44, ("bf16", "layer"): 60, ("fp16", "none"): 368}
MIXTURE_LAUNCHES = 131  # the same of a mixture in bf16, nothing recomputed
LAUNCHES_ONCE = 110  # of a step, beside its layers (docs/LOG.md)
# How often what lies between the products is touched, over one read and one write of each operand, as walked. In fp16 rows
# are scaled and all else is fp32.
COPIES = {"bf16": 1.8, "fp16": 12.25}
# How often a row of D numbers of every pair of token and expert is touched beside its products, forward and backward, as
# walked: sorted, widened by the ranks, put back, added up in fp32. The walk has their sum; a third forward is assumed.
OF_PAIRS = (17, 35)
ATTENTION = 0.4  # of the product's rate, assumed: documents are short
STREAMED = 0.85  # of the bandwidth, assumed: kernels that read and write in order
UNPACKED = 0.6  # of the bandwidth, assumed: unpacking NF4, which issues many loads a byte
LOGIT_BYTES = 16  # touched by the loss for a supervised token and word
TRAINED_BYTES = 48  # touched for a trained weight a step: gradient, norm, AdamW, the copy that is multiplied
ROOM = 0.9  # of a card's memory: what weights may take before anything else


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A decoder: means of its layers.

    Attributes:
        intermediate: width of the MLP that every token passes; 0 where experts stand in its place.
        query, key_value: width of all query heads, and of all key (or value) heads.
        tied: whether the head is the embedding.
        experts, chosen, expert: of a layer, of them those that a token passes, and the width of one.
        windowed: layers in which a token sees ``window`` tokens of its document at most, itself included.
    """

    hidden: int
    intermediate: int
    layers: int
    query: int
    key_value: int
    vocab: int
    tied: bool
    experts: int = 0
    chosen: int = 0
    expert: int = 0
    windowed: int = 0
    window: int = 0

    @classmethod
    def of(cls, shape: Shape) -> Self:
        """Of a model: widths as a mean of the layers, and the window that most of those with one have."""

        def mean(widths: Iterator[int]) -> int:
            counts = (count for _, count in shape.kinds)
            return round(sum(count * width for count, width in zip(counts, widths, strict=True)) / shape.depth)

        windows = Counter(layer.window for layer in shape.layers if layer.window is not None)
        return cls(
            hidden=shape.hidden,
            intermediate=mean(layer.intermediate + layer.shared for layer, _ in shape.kinds),
            layers=shape.depth,
            query=mean(layer.query for layer, _ in shape.kinds),
            key_value=mean(layer.key_value for layer, _ in shape.kinds),
            vocab=shape.vocab,
            tied=shape.tied,
            experts=max(layer.experts for layer in shape.layers),
            chosen=max(layer.chosen for layer in shape.layers),
            expert=mean(layer.expert for layer, _ in shape.kinds),
            windowed=windows.total(),
            window=windows.most_common(1)[0][0] if windows else 0,
        )

    @property
    def linear(self) -> int:
        """Weights of a layer's linear layers and of all its experts."""
        return self.used + 3 * self.hidden * (self.experts - self.chosen) * self.expert

    @property
    def used(self) -> int:
        """Of them, those that a token is multiplied with."""
        return self.hidden * (2 * self.query + 2 * self.key_value) + 3 * self.hidden * self.passed

    @property
    def passed(self) -> int:
        """Width of all that a token passes between attention and the next layer."""
        return self.intermediate + self.chosen * self.expert

    @property
    def weights_bytes(self) -> float:
        """Linear layers and experts in NF4, embedding and head in 16 bits."""
        return self.layers * self.linear * NF4 + (1 if self.tied else 2) * self.vocab * self.hidden * WIDTH

    @property
    def adapter_per_rank(self) -> int:
        """Trained weights of a rank-1 adapter on all of them."""
        return self.layers * self._adapter(self.experts)

    @property
    def used_adapter_per_rank(self) -> int:
        """Of them, those that a token is multiplied with."""
        return self.layers * self._adapter(self.chosen)

    def _adapter(self, experts: int) -> int:
        dense = 3 * (self.hidden + self.intermediate) if self.intermediate else 0
        of_experts = experts * 3 * (self.hidden + self.expert) if self.expert else 0
        return 4 * self.hidden + 2 * self.query + 2 * self.key_value + dense + of_experts

    def seen(self, document: int) -> float:
        """Tokens that a token sees in all layers together, as a mean over a document of so many."""
        inside = min(self.window, document)
        return (self.layers - self.windowed) * document / 2 + self.windowed * (inside - inside**2 / (2 * document))


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a pack, by what they go to.

    Attributes:
        products: of the base and the adapter, and of the head.
        between: norms, rotations, activations, thin products: all that is bound by bytes.
        optimizer: this pack's part.
        launches: of the host, meanwhile.
        flops: of the products, recomputed ones included.
        tokens: of the pack.
        rate: FLOP a second that large products reach.
    """

    products: float
    attention: float
    unpacking: float
    between: float
    loss: float
    optimizer: float
    launches: float
    flops: float
    tokens: int
    rate: float

    @property
    def device(self) -> float:
        """Seconds of the GPU."""
        return self.products + self.attention + self.unpacking + self.between + self.loss + self.optimizer

    @property
    def seconds(self) -> float:
        """Of GPU and host, the slower."""
        return max(self.device, self.launches)

    @property
    def share(self) -> float:
        """Of the product's rate."""
        return self.flops / self.seconds / self.rate

    @property
    def tokens_per_second(self) -> float:
        """Of all packs alike."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class LayerBytes:
    """What a layer's launches read and write for one pack."""

    products: float
    unpacking: float
    between: float

    @property
    def total(self) -> float:
        """Of all of them."""
        return self.products + self.unpacking + self.between

    @classmethod
    def of(cls, sizes: Sizes, tokens: int, recompute: Recompute, compute: str) -> Self:
        """By arithmetic from the widths."""
        h, f, q, k = sizes.hidden, sizes.passed, sizes.query, sizes.key_value
        forward = 2 if recompute == "layer" else 1
        times = (1 if sizes.intermediate else 0) + (sizes.chosen if sizes.expert else 0)  # a token passes an MLP or expert
        rows = (h + q + 2 * k) + (q + h) + (times * h + 2 * f) + (f + times * h)  # in and out of the four groups of products
        i = sizes.intermediate
        unread = (forward - 1) * h * i, (forward - 1) * ((i + h) if i else 0)  # an MLP's last product is not computed again
        products = WIDTH * ((forward + 1) * sizes.linear - unread[0] + tokens * ((forward + 1) * rows - unread[1]))
        unpacking = (NF4 + WIDTH) * ((forward + 1) * sizes.linear - unread[0])
        ahead = 8 * h + 4 * (q + k) + 3 * f  # two norms with their sums, rotation, attention, gate times up
        back = 8 * h + 6 * (q + k) + 6 * f
        pairs = sizes.chosen * h * (forward * OF_PAIRS[0] + OF_PAIRS[1])
        return cls(products, unpacking, WIDTH * tokens * (COPIES[compute] * (forward * ahead + back) + pairs))


def fits(sizes: Sizes, card: Card) -> bool:
    """Whether a card holds the weights at all; what a run needs beside them is not asked here."""
    return sizes.weights_bytes <= ROOM * card.memory_bytes.value


def step_time(
    sizes: Sizes,
    tokens: int,
    supervised: int,
    card: Card,
    recompute: Recompute = "none",
    r: int = 16,
    packs: int = 1,
    document: int = 512,
) -> StepTime:
    """What one pack of a QLoRA step takes, base in NF4, an adapter on all linear layers, no dropout.

    Args:
        tokens: of the pack.
        supervised: of them, those whose logits are made.
        recompute: nothing, or every layer.
        packs: of a step, over which the optimizer is spread.
        document: tokens of the documents of a pack, as an average token sees it.
    """
    layers, adapter = sizes.layers, r * sizes.adapter_per_rank
    again = 2 if recompute == "layer" else 0
    unread = again * sizes.hidden * sizes.intermediate
    base = layers * ((4 + again) * sizes.used - unread) * tokens + (6 + again) * r * sizes.used_adapter_per_rank * tokens
    head = 4 * supervised * sizes.vocab * sizes.hidden
    attention = (12 + 2 * again) * sizes.query * tokens * sizes.seen(min(document, tokens))
    touched = LayerBytes.of(sizes, tokens, recompute, card.compute)
    bandwidth = STREAMED * card.bandwidth.value
    return StepTime(
        products=max(base / card.product, layers * touched.products / bandwidth) + head / card.product,
        attention=attention / (ATTENTION * card.product),
        unpacking=layers * touched.unpacking / (UNPACKED * card.bandwidth.value),
        between=layers * touched.between / bandwidth,
        loss=supervised * sizes.vocab * LOGIT_BYTES / bandwidth,
        optimizer=adapter * TRAINED_BYTES / bandwidth / packs,
        launches=(layers * launches(card.compute, recompute, sizes.experts > 0) + LAUNCHES_ONCE) * card.launch.value,
        flops=base + head + attention,
        tokens=tokens,
        rate=card.product,
    )


def launches(compute: str, recompute: Recompute, is_mixture: bool = False) -> float:
    """Of a layer and a pack; what was not walked is taken in the proportion of what was."""
    walked = MIXTURE_LAUNCHES / LAUNCHES["bf16", "none"] if is_mixture else 1.0
    if (compute, recompute) in LAUNCHES:
        return walked * LAUNCHES[compute, recompute]
    return walked * LAUNCHES[compute, "none"] * LAUNCHES["bf16", recompute] / LAUNCHES["bf16", "none"]
