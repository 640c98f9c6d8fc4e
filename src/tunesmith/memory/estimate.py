"""Bytes of a training run, term by term, before anything is loaded.

A step is walked on a tape (``memory/tape.py``): what lies there throughout, each layer forwards, the loss, each layer
backwards, the update. Layers of one kind are walked once and their figures added, so an estimate takes a millisecond. Where
the most is alive is not assumed but found: at the loss in small models, in the MLP of the last recomputed layer in large ones.

Two numbers come out. ``peak`` is what tensors take, ``torch.cuda.max_memory_allocated``; a trace of our own code holds it, to
half a percent at real widths of dense models, to 2 % on toys. ``reserved`` is what the allocator takes for them, larger by what
it cannot use of its segments; beside it a process has a context on the card, which is not counted here.

Refused: parameters times a factor (short by half for 4 bits, since the rest does not shrink with them); the formula of the
worst moment alone (another moment is the worst for another shape). Cost: a step that is written twice, here and in the code; a
test tells when they part.

Source: NF4 is 4 bits and, with doubly quantised constants, 0.127 more (Dettmers et al. 2023, section 3).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

from tunesmith.memory.cpu_layer import CpuLayer
from tunesmith.memory.dials import BYTES, DENSE, Dials
from tunesmith.memory.gpu_layer import ATTENTION, GRADIENTS, INPUTS, GpuLayer, columns
from tunesmith.memory.shape import Layer, Shape
from tunesmith.memory.tape import GRANULE, Tape
from tunesmith.recipe.tables import Table

CHUNK = 256  # rows of logits alive at once (kernels/cross_entropy.py)
SLICE = 8192  # rows of a head that are dense at once (kernels/sliced.py)
WIDENED = 16  # rows of them that a CPU takes to fp32 at once
STATE = {"adamw": 8.0, "adamw_8bit": 2.0 + 2 * 4.0 / 256, "paged_adamw_8bit": 2.0 + 2 * 4.0 / 256}  # bytes a trained weight
FULL_STATE_FROM = 4096  # weights of a tensor from which its 8-bit moments are in 8 bits
RESERVED = 1.09  # reserved over allocated: the largest of the replays of traced steps of 1B and 8B (docs/LOG.md)
# What NF4 is quantised and looked up by, once a process (kernels/nf4.py): cells of the upper halves of fp32 (a byte and an fp32
# each), codes of a grid of absmax, what these and the sixteen values mean. On a CPU they count to the process.
TABLES = 2**16 * (1 + 4) + 2**16 + 256 * 4 + 512
# Dials that a layer's own walk does not look at, as they are by default: one walk serves all of their settings.
BESIDE: dict[str, Any] = {"embedding_on": "device", "head": "compute", "optimizer": "adamw", "resident_layers": None}
BESIDE |= {"recompute": "none", "technique": "lora", "offload": "none"}
TABLE_GRADIENT = "gradient of a table"
GRID = 8 / 32  # bytes a weight of fp32 scales and minima; the dials do not know the type, so it is the most
SLOTS = 2  # layers whose streamed weights are on the device at once


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step takes, in bytes.

    Attributes:
        resident: what lies there throughout a step, by term.
        moments: the most that is alive in the forward pass, in the backward pass and in the update, by term.
    """

    resident: Mapping[str, int]
    moments: Mapping[str, Mapping[str, int]]

    @property
    def forward(self) -> int:
        """The most in the forward pass."""
        return sum(self.moments["forward"].values())

    @property
    def backward(self) -> int:
        """The most in the backward pass."""
        return sum(self.moments["backward"].values())

    @property
    def where(self) -> str:
        """In which pass the most is alive."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def terms(self) -> dict[str, int]:
        """What is alive at the peak, by term, the largest first."""
        return dict(sorted(self.moments[self.where].items(), key=lambda item: -item[1]))

    @property
    def peak(self) -> int:
        """The most bytes of tensors."""
        return sum(self.terms.values())

    @property
    def reserved(self) -> int:
        """What the allocator takes for them."""
        return int(self.peak * RESERVED)


@dataclass(frozen=True)
class _Piece:
    """One layer's figures, beyond what is alive when it begins: most forwards, what stays, most backwards, what that leaves."""

    forward: Counter[str]
    kept: Counter[str]
    backward: Counter[str]
    left: Counter[str]


def estimate(shape: Shape, dials: Dials) -> Estimate:
    """Memory of a step.

    Args:
        shape: of the model.
        dials: of the run.
    """
    resident = _resident(shape, dials)
    live, most = Counter(resident), {"forward": Counter(resident), "backward": Counter(resident)}

    def look(moment: str, extra: Counter[str], away: int = 0, result: int = 0) -> None:
        """Is it the most; ``away`` are inputs in host memory, ``result`` is what a neighbour's attention gave, on its way."""
        extra = Counter(extra)
        extra[INPUTS] -= away * dials.tokens * shape.hidden * dials.width
        extra[ATTENTION] += result
        if live.total() + extra.total() > most[moment].total():
            most[moment] = Counter(live)
            most[moment].update(extra)

    plain = replace(dials, **BESIDE)
    live["inputs of the step"] += inputs_of_step(shape, dials)
    live[INPUTS] += dials.tokens * shape.hidden * dials.width
    walked = [(run, _piece(run.layer, shape.hidden, plain, run.policy, run.narrow, run.first)) for run in runs(shape, dials)]
    away = [run.count * (dials.offload != "none" and run.policy == "layer") for run, _ in walked]
    for number, (run, piece) in enumerate(walked):  # of neighbours that are alike the last is the worst: each keeps something
        live.update(_times(piece.kept, run.count - 1))
        gone = sum(away[:number]) + max(0, away[number] - 1)
        look("forward", piece.forward, gone, _result(run, dials) if gone else 0)
        live.update(piece.kept)
    loss, first, after = _loss(shape, dials)
    last = max((number for number, count in enumerate(away) if count), default=None)  # whose input, the latest, is on its way
    still = (max(0, sum(away) - 1), 0 if last is None else _result(walked[last][0], dials))
    look("forward", loss, *still)
    live.update(after)
    look("backward", first, *still)
    live.subtract(after)
    table = 4 * shape.hidden * shape.vocab
    head, embedding = (_trains(name, shape, dials) for name in ("head", "embedding"))
    if head and (dials.packs == 1 or (embedding and shape.tied)):  # of one table it waits for the other half
        live[GRADIENTS] += table
    for number, (run, piece) in reversed(list(enumerate(walked))):
        rows = (dials.rows if run.narrow else dials.tokens) * shape.hidden * dials.width
        live[INPUTS] -= rows  # the layer's output, whose gradient takes its place
        live["gradient of the output"] = rows
        gone = sum(away[:number])
        begun = 0
        # The first of them, with all inputs there, and the last, with all gradients; of those that are offloaded the last but
        # one too, behind which nothing comes.
        for left in sorted({run.count, min(run.count, 2) if away[number] else run.count, 1}, reverse=True):
            live.subtract(_times(piece.kept, run.count - left - begun))  # what is alive goes one way from one to the next
            live[GRADIENTS] += (run.count - left - begun) * piece.left[GRADIENTS]
            begun = run.count - left
            waiting = gone + (left if away[number] else 0)
            look("backward", piece.backward, max(0, waiting - 2), _result(run, dials) if waiting > 1 else 0)
        live.subtract(piece.kept)
        live[GRADIENTS] += piece.left[GRADIENTS]
        live[INPUTS] += rows
    if embedding:  # autograd adds up the two gradients of one table in place on a CPU, and on a GPU perhaps not
        more = head and shape.tied and dials.device == "gpu"
        look("backward", Counter({TABLE_GRADIENT: table * (1 + more)}))
        live[GRADIENTS] += table * (dials.packs == 1 and not (head and shape.tied))
    update = Counter(resident)
    update[GRADIENTS] = max(update[GRADIENTS], live[GRADIENTS])
    moments = {**most, "update": update}
    return Estimate(resident=resident, moments={name: _positive(terms) for name, terms in moments.items()})


@dataclass(frozen=True)
class Run:
    """Neighbouring layers that are computed alike.

    Attributes:
        policy: what of them is computed a second time.
        narrow: of the last layer, whose output is computed for the supervised rows alone.
        first: the input wants no gradient.
        count: how many they are.
    """

    layer: Layer
    policy: str
    narrow: bool
    first: bool
    count: int


def runs(shape: Shape, dials: Dials) -> list[Run]:
    """All layers in order."""
    found: list[Run] = []
    number, last = 0, shape.depth - 1 if shape.narrow else -1
    wants_input = dials.new_tokens > 0 or _trains("embedding", shape, dials)
    same_for_all = dials.recomputed(0) if isinstance(dials.recompute, str) else None
    for layer, count in shape.stretches:
        alike: list[tuple[str, bool, bool]] = []
        for position in range(number, number + count):
            policy = "none" if position == last else same_for_all or dials.recomputed(position)
            alike.append((policy, position == last, position == 0 and not wants_input))
        found += [Run(layer, *facts, sum(1 for _ in same)) for facts, same in groupby(alike)]
        number += count
    return found


def _result(run: Run, dials: Dials) -> int:
    """Bytes of what the attention of a layer gave, where it waits in host memory."""
    if dials.offload != "attention":
        return 0
    return dials.tokens * (run.layer.query * dials.width + 4 * run.layer.heads)


def _times(terms: Counter[str], count: int) -> Counter[str]:
    return Counter({name: count * nbytes for name, nbytes in terms.items()})


def _positive(terms: Counter[str]) -> dict[str, int]:
    return {name: value for name, value in terms.items() if value > 0}


def _resident(shape: Shape, dials: Dials) -> Counter[str]:
    """What lies there throughout a step."""
    hidden, dense = shape.hidden, DENSE[dials.compute]
    here: Counter[str] = Counter()
    held = _held(shape, dials)
    linear = sum(count * layer.linear(hidden) for layer, count in held)
    here["linear layers"] = int(linear * BYTES[dials.base]) + dials.extra
    if not dials.quantised and dials.technique == "lora" and dials.compute != "fp16" and not dials.qat:
        # Frozen weights stand beside free columns for B (layers/lora.py).
        gpu = dials.device == "gpu"
        pads = 0
        for layer, count in held:
            each = (sum(outs) * columns(inputs, dials.r * len(outs), gpu) for inputs, outs in groups(layer, hidden))
            pads += count * sum(each)
        here["linear layers"] += pads * dense
    here["norms, routers, projections"] = (shape.norms + shape.routers + shape.projections) * dense
    table, per_layer = hidden * shape.vocab, shape.per_layer * dense * (dials.device == "cpu")
    here["head"] = table * (1 if dials.head == "int8" else dense) + (shape.vocab * dense if shape.head_bias else 0)
    if not shape.tied or dials.head == "int8":
        here["embedding"] = table * dense * (dials.embedding_on == "device")
    here["embedding"] += per_layer
    trained = shape.parameters if dials.technique == "full" else trained_weights(shape, dials)
    tables = 4 * table_weights(shape, dials)
    here["adapter" if dials.technique == "lora" else "master weights"] = 4 * trained - tables
    here["trained tables"] = tables
    here["optimizer"] = int(trained * STATE[dials.optimizer]) + _small_states(shape, dials)
    if dials.packs > 1:
        here[GRADIENTS] = 4 * trained
    if dials.technique == "lora" and dials.device == "gpu" and dials.compute != "fp16":
        here["step casts of A"] = sum(count * _casts(layer, hidden, dials) for layer, count in shape.kinds) * dense
    if dials.qat:
        here["rounded weights"] = linear * dense
        here["grids of the file"] = int(linear * GRID)
    cast = min(SLICE, shape.vocab) * hidden if _trains("head", shape, dials) and dials.compute != "fp32" else 0
    if dials.quantised:
        here["tables of codes"] = TABLES if dials.device == "gpu" and dials.base == "nf4" else 0
        cast = max(cast, _dense_buffer(shape, dials))
    if cast:
        here["dense buffer"] = cast * dense
    return here


def trained_weights(shape: Shape, dials: Dials) -> int:
    """Of the adapters, and of whole tables or the rows of new tokens in both, or in one that is both."""
    rows = 0 if dials.tables else dials.new_tokens * shape.hidden * (1 if shape.tied else 2)
    return dials.r * shape.adapter_per_rank + rows + table_weights(shape, dials)


def table_weights(shape: Shape, dials: Dials) -> int:
    """Of tables that are trained whole."""
    return shape.hidden * shape.vocab * (min(1, len(dials.tables)) if shape.tied else len(dials.tables))


def _trains(table: Table, shape: Shape, dials: Dials) -> bool:
    """Whether the embedding or the head is trained whole."""
    return bool(dials.tables) if shape.tied else table in dials.tables


def _held(shape: Shape, dials: Dials) -> tuple[tuple[Layer, int], ...]:
    """Layers whose weights are on the device, and how often each comes."""
    if dials.resident_layers is None or dials.resident_layers >= shape.depth:
        return shape.kinds
    streamed = sorted(shape.layers[dials.resident_layers :], key=lambda layer: layer.linear(shape.hidden))
    return tuple(Counter((*shape.layers[: dials.resident_layers], *streamed[-SLOTS:])).items())


def groups(layer: Layer, hidden: int) -> list[tuple[int, tuple[int, ...]]]:
    """Inputs and outputs of the products of a layer, experts aside."""
    groups = [(hidden, layer.inputs), (layer.query, (hidden,))]
    for width in (layer.intermediate, layer.shared):
        if width:
            gates = layer.gates if width == layer.intermediate else (width, width)
            groups += [(hidden, gates), (width, (hidden,))]
    return groups


def _casts(layer: Layer, hidden: int, dials: Dials) -> int:
    """Elements of A and B in the dtype of the products, which a step keeps."""
    total = 0
    for inputs, outs in groups(layer, hidden):
        cols = columns(inputs, dials.r * len(outs))
        total += cols * inputs
    return total


def _dense_buffer(shape: Shape, dials: Dials) -> int:
    """Elements of the buffer that dequantised weights share: the largest group's, on a CPU the largest weight's."""
    most = 0
    for layer, _ in shape.kinds:
        for inputs, outs in groups(layer, shape.hidden):
            beside = columns(inputs, dials.r * len(outs))
            most = max(most, sum(outs) * (inputs + beside) if dials.device == "gpu" else max(outs) * inputs)
        if layer.experts:
            most = max(most, 2 * layer.expert * shape.hidden * (layer.experts if dials.device == "gpu" else 1))
    return most


def _small_states(shape: Shape, dials: Dials) -> int:
    """What moments of small tensors take more because they stay in fp32."""
    if dials.optimizer == "adamw" or dials.technique == "full":
        return 0
    more = 0
    for layer, count in shape.kinds:
        for inputs, outs in groups(layer, shape.hidden):
            sizes = [dials.r * inputs] * len(outs) + [dials.r * width for width in outs]
            more += count * sum(int(size * (8.0 - STATE[dials.optimizer])) for size in sizes if size < FULL_STATE_FROM)
    return more


def inputs_of_step(shape: Shape, dials: Dials) -> int:
    """Ids and positions of a micro-batch, cosines and sines of every width of heads, inputs of every layer."""
    turns = {(layer.head_dim, layer.window is None) for layer, _ in shape.kinds}
    width = max(layer.per_layer for layer, _ in shape.kinds)
    angles = sum(2 * head_dim * dials.width for head_dim, _ in turns)
    return dials.tokens * (2 * 8 + angles + shape.depth * width * dials.width) + 2 * 8 * dials.rows


def chunk_of_logits(shape: Shape, dials: Dials) -> tuple[int, ...]:
    """Bytes of the logits of a chunk, and of what else is made of them (kernels/cross_entropy.py)."""
    chunk = min(CHUNK, dials.rows) * shape.vocab
    if dials.compute != "bf16":
        return (chunk * dials.width,)
    return (chunk * 4,) if dials.device == "gpu" else (chunk * 2, min(WIDENED, dials.rows) * shape.vocab * 4)


def _loss(shape: Shape, dials: Dials) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Alive at the loss beyond what the layers keep; at the begin of the backward pass; what stays between them."""
    rows = dials.rows * shape.hidden * dials.width
    logits = sum(chunk_of_logits(shape, dials))
    states = Counter({"last hidden states": rows if shape.narrow else rows + dials.tokens * shape.hidden * dials.width})
    kept = Counter({"gradient at the head": rows})
    found, first = states + kept + Counter({"chunk of logits": logits}), Counter({"gradient of the output": rows})
    if _trains("head", shape, dials):  # a slice of its gradient, where that is not added in place, and then all of it
        table = Counter({TABLE_GRADIENT: 4 * shape.hidden * shape.vocab})
        width = 4 if dials.device == "gpu" else dials.width
        sliced = min(SLICE, shape.vocab) * shape.hidden * width * (dials.compute == "bf16")
        found += table + Counter({"chunk of logits": sliced})
        first += table
    return found, first, kept


def layer_walk(layer: Layer, hidden: int, dials: Dials, narrow: bool, first: bool) -> GpuLayer:
    """How a device computes a layer."""
    return (GpuLayer if dials.device == "gpu" else CpuLayer)(layer, hidden, dials, narrow, first)


@lru_cache(maxsize=4096)
def _piece(layer: Layer, hidden: int, dials: Dials, policy: str, narrow: bool, first: bool) -> _Piece:
    """A layer on a tape of its own."""
    walked = layer_walk(layer, hidden, dials, narrow, first)
    tape = Tape(GRANULE if dials.device == "gpu" else 1)
    walked.forward(tape)
    forward = Counter(tape.at_peak)
    if policy == "layer":
        walked.drop_all(tape)
    else:
        walked.drop(tape, policy == "attention", policy == "mlp")
    kept = +tape.live
    tape.free("out")
    base = +tape.live
    tape.mark()
    walked.backward(tape, policy)
    gradients = Counter({GRADIENTS: 0 if dials.packs > 1 else tape.live[GRADIENTS]})
    return _Piece(forward, kept, tape.at_peak - base, gradients)
