"""The fastest way to run a training within so much memory.

A few hundred settings of the dials are estimated (a millisecond each) and timed by a model of the card; of those that fit, the
fastest is the plan. Dials that change no number of the result are turned first. Only where none of these fits are those that
round something turned too (the head in 8 bits, the optimizer's moments in 8 bits), and the plan says so.

Time counts what a dial adds: layers that are computed again in the share that is, copies over the link where they take longer
than the products they hide behind, a tile of an MLP nothing (its second forward pass replaces that of recomputation).

Refused: trying a step and catching what runs out (a fragmented allocator, and packs differ: the step that fails may be the
thousandth); a solver (the grid is small, and a plan that people can follow is worth more than the last percent).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from tunesmith.memory.cards import Card, find_card
from tunesmith.memory.dials import BYTES, POLICIES, Dials
from tunesmith.memory.estimate import Estimate, Run, estimate, runs
from tunesmith.memory.room import CONTEXT, HEADROOM, resident_bytes
from tunesmith.memory.shape import Shape
from tunesmith.memory.speed import Sizes, step_time

TILES = (32768, 4096)  # tokens of a tile of an MLP that are tried, where a micro-batch is longer
KEPT = (0.75, 0.5, 0.25)  # shares of layers that are kept whole, the others recomputed
RESIDENT = (0.75, 0.5, 0.25, 0.0)  # shares of layers whose weights stay on the card
CPU_SHARE = 0.58  # of the products' rate that a step on a CPU reaches (benchmarks/results/train-step-epyc-*.json, 0.55 to 0.62)
WIDEST_HEAD = 256  # features of a head that PyTorch's flash attention takes (kernels/attention.py)
WORTH_KEEPING = 8192  # tokens of a document from which attention is a twelfth of a recomputed step or more
DOCUMENT = 512  # tokens of a document, as an average token sees it, where no rows are known


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a machine does a second, measured or from the table of cards.

    Attributes:
        card: that the rest of the time model is about; None for a CPU, of which only products are known.
        product: FLOP of large products.
        link: bytes between host and card.
        measured: here, just now.
    """

    card: Card | None
    product: float
    link: float
    measured: bool = False

    @classmethod
    def of(cls, card: Card) -> "Rates":
        """As the table has them."""
        return cls(card=card, product=card.product, link=card.link.value)


@dataclass(frozen=True)
class Point:
    """One setting of the dials.

    Attributes:
        dials: as they are turned.
        seconds: of a micro-batch; None where no rates are known.
    """

    shape: Shape
    dials: Dials
    seconds: float | None

    @cached_property
    def estimate(self) -> Estimate:
        """What it takes."""
        return estimate(self.shape, self.dials)

    def needs(self, context: int) -> int:
        """Bytes of the card, allocator and context together; of a CPU those of the whole process, as in training."""
        if self.dials.device == "cpu":
            return resident_bytes(self.shape, self.dials)
        return self.estimate.reserved + context


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was found.

    Attributes:
        chosen: the fastest that fits, or the smallest of all where none does.
        fits: whether it does.
        rounds: the chosen one changes the result, since no exact one fits.
        passed_over: the fastest of each kind of setting that is faster than the chosen one and does not fit, the fastest first.
        smallest: that takes the least.
    """

    chosen: Point
    fits: bool
    rounds: bool
    passed_over: tuple[Point, ...]
    smallest: Point


def make_plan(
    shape: Shape, dials: Dials, budget: int, rates: Rates | None, context: int = CONTEXT, *, may_round: bool = True
) -> Plan:
    """The fastest setting that fits.

    Args:
        dials: what the run fixes (base, rank, tokens ...); those that a plan turns may be set already and then stay.
        budget: bytes of the card.
        rates: None: settings are ordered by what they compute again and copy.
        context: bytes of the process on the card.
        may_round: whether dials that change the result are turned where no other plan fits.
    """
    exact = [Point(shape, turned, seconds(shape, turned, rates)) for turned in settings(shape, dials)]
    rounded = [
        Point(shape, turned, seconds(shape, turned, rates))
        for less in (rounding(dials) if may_round else ())
        for turned in settings(shape, less)
    ]
    best = _fastest(exact, budget, context)
    rounds = best is None and (best := _fastest(rounded, budget, context)) is not None
    smallest = min(exact + rounded, key=lambda point: point.estimate.reserved)
    chosen = smallest if best is None else best
    return Plan(
        chosen=chosen,
        fits=best is not None,
        rounds=rounds or (best is None and chosen in rounded),
        passed_over=_passed_over(exact, chosen, budget, context),
        smallest=smallest,
    )


def plan_for_training(shape: Shape, dials: Dials, room: int, card: str, context: int = CONTEXT, factor: float = 1.0) -> Plan:
    """What a training turns to fit a GPU, and ``advise`` foretells: what is exact, a twentieth of the room left over.

    Args:
        room: bytes that it may take.
        card: name of the GPU; where it is in no table, settings are ordered by what they compute again and copy.
        context: bytes of the process that are part of the room.
        factor: by which the estimate is known to be too small.
    """
    known = find_card(card)
    rates = None if known is None else Rates.of(known)
    return make_plan(shape, dials, int(room / HEADROOM["gpu"] / factor), rates, context, may_round=False)


def spare_bytes(point: Point, budget: int, context: int) -> int:
    """Bytes that frozen weights may take beyond what they take now, with the headroom that a training leaves.

    The allocator takes more for them than they have, so what is left is divided by what a byte costs.

    Args:
        budget: of the card, or of the machine.
        context: see ``Point.needs``.
    """
    needs = point.needs(context)
    more = replace(point, dials=replace(point.dials, extra=point.dials.extra + 10**9)).needs(context)
    left = budget / HEADROOM[point.dials.device] - needs
    return max(0, int(left / max(1.0, (more - needs) / 10**9)))


def turned(dials: Dials) -> dict[str, str | int | tuple[int, ...]]:
    """Dials by the names that a recipe has for them, where they differ from its defaults."""
    found: dict[str, str | int | tuple[int, ...]] = {
        "train.recompute": "none" if dials.recompute == "auto" else dials.recompute
    }
    if dials.embedding_on == "host":
        found["train.embedding_on"] = "host"
    if dials.head == "int8":
        found["base_head"] = "int8"
    if dials.optimizer != "adamw":
        found["train.optimizer"] = dials.optimizer
    if dials.offload != "none":
        found["train.offload"] = dials.offload
    if dials.mlp_tile:
        found["train.mlp_tile"] = dials.mlp_tile
    if dials.resident_layers is not None:
        found["train.resident_layers"] = dials.resident_layers
    return found


def turned_words(dials: Dials) -> str:
    """The same in a line."""
    return ", ".join(f"{key} {_layers(value)}" for key, value in turned(dials).items())


def _layers(value: str | int | tuple[int, ...]) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return f"layers {min(value, default=0)} to {max(value, default=0)}"


def _fastest(points: list[Point], budget: int, context: int) -> Point | None:
    """Of those that fit; of equally fast ones the one that turns less, which stands first."""
    return min((p for p in points if p.needs(context) <= budget), key=lambda p: p.seconds or 0.0, default=None)


def _passed_over(points: list[Point], chosen: Point, budget: int, context: int) -> tuple[Point, ...]:
    """One of each policy of recomputation, the smallest with its weights on the card, that does not fit and is faster."""
    by_policy: dict[str, Point] = {}
    for point in points:
        if point.dials.resident_layers is None and point.needs(context) > budget and point.dials != chosen.dials:
            name = recompute_name(point.dials, point.shape.depth)
            if name not in by_policy or point.estimate.reserved < by_policy[name].estimate.reserved:
                by_policy[name] = point
    faster = [p for p in by_policy.values() if (p.seconds or 0.0) <= (chosen.seconds or 0.0)]
    return tuple(sorted(faster, key=lambda point: point.seconds or 0.0))


def settings(shape: Shape, dials: Dials) -> Iterator[Dials]:
    """Settings that give the same result, those that turn less first."""
    tables = ("device",) if dials.embedding_on == "device" else ("host",)
    is_frozen = "embedding" not in dials.tables and not (shape.tied and dials.tables)
    if tables == ("device",) and is_frozen and dials.device == "gpu" and (not shape.tied or dials.head == "int8"):
        tables = ("device", "host")
    for table in tables:
        here = replace(dials, embedding_on=table)
        for policy in _policies(shape, here):
            kept = replace(here, recompute=policy)
            yield kept
            if dials.device == "gpu" and (policy == "layer" or dials.recompute != "auto"):
                yield from _beyond(shape, kept)


def _policies(shape: Shape, dials: Dials) -> Iterator[str | int | tuple[int, ...]]:
    if dials.recompute != "auto":
        yield dials.recompute
        return
    yield from POLICIES[:-1]
    for share in KEPT:
        count = round(share * shape.depth)
        if 0 < count < shape.depth:  # the last ones are kept: they are the first to be let go of backwards
            yield tuple(range(shape.depth - count))
    yield POLICIES[-1]


def _beyond(shape: Shape, dials: Dials) -> Iterator[Dials]:
    """What can be turned once every layer is recomputed; where the recipe says another policy, the layers on the card alone."""
    tiles = (0, *(tile for tile in TILES if tile < dials.tokens)) if not dials.mlp_tile else (dials.mlp_tile,)
    if dials.recompute != "layer":
        tiles = (dials.mlp_tile,)
    elif any(layer.experts for layer in shape.layers) or not (dials.plain and shape.known):
        tiles = tiles[:1]
    offloads: tuple[Literal["none", "inputs", "attention"], ...] = (dials.offload,)
    if dials.offload == "none" and dials.recompute == "layer":
        offloads = ("none", "inputs", "attention") if knows_attention(shape, dials) else ("none", "inputs")
    resident: tuple[int | None, ...] = (dials.resident_layers,)
    if dials.base == "nf4" and dials.resident_layers is None:
        resident = (None, *(round(share * shape.depth) for share in RESIDENT))
    for layers in resident:
        for tile in tiles:
            for offload in offloads:
                turned = replace(dials, mlp_tile=tile, offload=offload, resident_layers=layers)
                if turned != dials:
                    yield turned


def knows_attention(shape: Shape, dials: Dials) -> bool:
    """Whether what attention gave can wait in host memory: our layers, heads that flash attention takes, and long documents.

    Of short ones attention costs less than the host memory is worth, which it doubles.
    """
    if (dials.longest or DOCUMENT) < WORTH_KEEPING:
        return False
    flash = dials.compute == "bf16" and all(layer.head_dim <= WIDEST_HEAD and layer.head_dim % 8 == 0 for layer in shape.layers)
    return shape.known and dials.plain and flash


def rounding(dials: Dials) -> Iterator[Dials]:
    """Settings that round what the others keep: each kind alone, then both."""
    is_free = dials.head == "compute" and dials.device == "gpu" and not dials.tables
    head = replace(dials, head="int8") if is_free else None
    if head is not None:
        yield head
    if dials.optimizer == "adamw":
        yield replace(dials, optimizer="adamw_8bit")
        if head is not None:
            yield replace(head, optimizer="adamw_8bit")


def seconds(shape: Shape, dials: Dials, rates: Rates | None) -> float | None:
    """Of a micro-batch, by the rates; without a card, in passes over a layer's products, which orders settings alike."""
    sizes = Sizes.of(shape)
    again = sum(run.count * _again(shape, run) for run in runs(shape, dials)) / shape.depth
    moved = _moved(shape, dials)
    if rates is not None and rates.card is None:
        used = shape.used - shape.hidden * shape.vocab
        head = 4.0 * dials.rows * shape.hidden * shape.vocab
        return ((4.0 + 2.0 * again) * used * dials.tokens + head) / (CPU_SHARE * rates.product)
    if rates is None or rates.card is None:
        return 4.0 + 2.0 * again + moved / (sizes.used * sizes.layers * BYTES["nf4"])
    document = min(dials.longest or DOCUMENT, dials.tokens)
    times = [
        step_time(sizes, dials.tokens, dials.rows, rates.card, recompute, dials.r, dials.packs, document)
        for recompute in ("none", "layer")
    ]
    device = times[0].device + again * (times[1].device - times[0].device)
    host = times[0].launches + again * (times[1].launches - times[0].launches)
    device += (times[0].products + again * (times[1].products - times[0].products)) * (rates.card.product / rates.product - 1.0)
    if dials.offload == "attention":
        device -= again * (times[1].attention - times[0].attention)
    return max(device, host, moved / rates.link)


def _again(shape: Shape, run: Run) -> float:
    """Share of a layer's products that the backward pass computes a second time."""
    layer = run.layer
    attention = shape.hidden * (sum(layer.inputs) + layer.query) / max(1, layer.linear(shape.hidden))
    return {"none": 0.0, "attention": attention, "mlp": 1.0 - attention, "layer": 1.0}[run.policy]


def _moved(shape: Shape, dials: Dials) -> float:
    """Bytes over the link for a micro-batch: weights twice, inputs and results out and back, rows of the embedding."""
    streamed = 0
    if dials.resident_layers is not None:
        streamed = sum(layer.linear(shape.hidden) for layer in shape.layers[dials.resident_layers :])
    each = 0 if dials.offload == "none" else shape.hidden * dials.width * shape.depth
    if dials.offload == "attention":
        each += sum(layer.query * dials.width + 4 * layer.heads for layer in shape.layers)
    inputs = 2 * dials.tokens * each
    rows = dials.tokens * shape.hidden * dials.width if dials.embedding_on == "host" else 0
    return 2 * streamed * BYTES[dials.base] / max(1, dials.packs) + inputs + rows


def recompute_name(dials: Dials, depth: int) -> str:
    """The policy for people."""
    if isinstance(dials.recompute, tuple):
        return f"{len(dials.recompute)} of {depth} layers"
    if isinstance(dials.recompute, int):
        return f"one of {dials.recompute} layers"
    return "none" if dials.recompute == "auto" else dials.recompute
