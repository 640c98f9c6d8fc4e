"""The processes of a training: packs are dealt out, their gradients are added in the order of the packs.

**On a CPU** a training is a world of processes with one thread each, one a physical core (``processes.py`` says why). They are
forked when the model is loaded, adapted and checked, so the frozen base lies in memory once. The adapter's weights lie in
memory that all of them share, and so does a slot for the gradient of each pack. Whoever is free takes the longest pack that is
left, and leaves its gradient in the pack's slot; then the first process adds the slots in the order of the packs, and makes the
optimizer's step. The others see the new weights where the old ones were.

**The result does not depend on the number of processes.** One process adds the same gradients in the same order
(``train/step.py``), every process computes with one thread, dropout follows from (seed, step, pack), and losses are added in
the order of the packs. So a run may go on with more processes or fewer, and ends with the same bytes.

**How many.** ``models/ranks.py`` has the rule: a process a physical core, as far as a step has packs and memory has room for
the activations of one pack each, and of weights that are rounded onto a grid, which each makes for itself.

**On a GPU** the world is one process. It puts the packs of the next step together before it waits for the loss of this one.

**Launched together** (torchrun, several GPUs or machines), the processes are there already, and ``train/together.py`` deals.

Cost: a slot is as large as the adapter (20 MB for 5M weights), and there are as many as packs in a step, up to 1 GB; longer
steps go through them in turns. Adding them takes a thousandth of a step.

Refused: gradients by rank (their sum depends on how packs fell), PyTorch's collectives over gloo (sockets and copies for what
lies in the same memory), a fixed deal (a process beside which something else runs would be waited for).

Shape suffixes: T tokens, N rows (positions that predict).
"""

import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.errors import TrainingError
from tunesmith.formatting import parse_amount
from tunesmith.launch.group import Group
from tunesmith.layers.context import Counters, StepContext, at_step
from tunesmith.layers.experts import Adapted
from tunesmith.layers.grid import GridLinear
from tunesmith.models.attention import PACKED
from tunesmith.models.keep_less import keep_less, refuse_offload
from tunesmith.models.load import attention, head_weight
from tunesmith.models.ranks import Load, Shape, longest_first, obstacle_to_computing, shape_of, threads
from tunesmith.processes import Team, shared_memory
from tunesmith.recipe import TrainSettings
from tunesmith.train.documents import Documents, Pack, supervised_tokens
from tunesmith.train.slots import Slots
from tunesmith.train.step import mean_loss, pack_loss, pack_tokens, step_gradients, step_packs
from tunesmith.train.together import Together, Ways, split_sequences

logger = logging.getLogger(__name__)

PlannedStep = tuple[int, list[tuple[int, ...]]]  # epoch, and documents of each micro-batch
FIRST_STEPS = 8  # whose packs are looked at
SLOT_BYTES, MOST_SLOTS = 1 << 30, 4096
# Hidden sizes that a layer keeps for a token (1.10 GB was taken where 1.17 were foretold).
WIDTHS_KEPT = 28
OTHER_BYTES = 150 << 20  # that a process takes beside activations and gradients
HELD = 3  # copies of what is trained that a process adds: its gradient, and two slots
STEP, DEV = 0, 1
EXACT_ON_CPU = True  # whether launched processes on a CPU add up pack by pack, and not each its own first, as between GPUs
JOB = struct.Struct("<qq")
RESULT = struct.Struct(
    "<dqq"
)  # summed loss, right guesses, rescued rows (-1: not counted); then a byte a weight: has it a gradient


class Steps(Protocol):
    """All optimizer steps of a run, as ``data/pack.py`` plans them."""

    epoch_ends: list[int]  # number of steps done at the end of each epoch

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> PlannedStep: ...


class Largest(NamedTuple):
    """What memory depends on: the most of each over the steps that were computed here.

    Attributes:
        tokens, rows: of a pack, and supervised ones of it.
        packs: of a step.
        longest: tokens that a token of a pack sees.
        ranks: processes.
    """

    tokens: int = 0
    rows: int = 0
    packs: int = 0
    longest: int = 0
    ranks: int = 1

    def joined(self, packs: Sequence[Pack]) -> "Largest":
        """With a step more."""
        return Largest(
            tokens=max(self.tokens, *(pack.ids_1T.shape[1] for pack in packs)),
            rows=max(self.rows, *(len(pack.target_N) for pack in packs)),
            packs=max(self.packs, len(packs)),
            longest=max(self.longest, *(s.end - s.start + s.prefix_end - s.prefix_start for pack in packs for s in pack.spans)),
            ranks=self.ranks,
        )


class StepSums(NamedTuple):
    """Mean loss and top-1 accuracy of a step; rows that fp16 would have lost (None: nothing was computed in fp16)."""

    loss: float
    accuracy: float
    rescued: int | None


def flop_of(pack: Pack, width: int) -> float:
    """Arithmetic of a pack, but for a factor that all packs of a model share: products with weights, and attention.

    Args:
        width: hidden size; a layer has some 12 times its square in weights.
    """
    pairs = sum((s.end - s.start) * ((s.end - s.start + 1) / 2 + s.prefix_end - s.prefix_start) for s in pack.spans)
    return 36 * width * pack.ids_1T.shape[1] + 7 * pairs


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the block, an operation without a deterministic form is an error.

    Without it, PyTorch adds up the gradients of packed attention on a GPU by atomics, so two runs differ in their last digits.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class World:
    """The processes of one training. A context manager: at the end of the block the forked ones are gone.

    Args:
        model: adapted and ready.
        layers: the adapted layers by name.
        train: the documents.
        steps: all optimizer steps in order.
        dev: documents whose loss is taken; None for none.
        settings: the section ``train`` of a recipe.
        seed: of dropout.
        group: processes that were launched together and have this training (``train/together.py``); None for one that forks.

    Attributes:
        largest: pack of the steps so far; of no tokens before the first.
        summands: processes that add gradients up before these are added; 1 where sums do not depend on their number.
        in_step: whether every pass through the model is one of all processes at once, so that none may compute alone.

    Raises:
        TrainingError: ``train.offload`` or ``train.ranks`` on a device that has no use for it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Mapping[str, Adapted],
        train: Documents,
        steps: Steps,
        dev: Documents | None,
        settings: TrainSettings,
        seed: int,
        group: Group | None = None,
    ):
        self._model, self._train, self._steps, self._settings, self._seed = model, train, steps, settings, seed
        self._parameters = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
        onto_grids = [layer.weight for layer in layers.values() if isinstance(layer, GridLinear)]
        self._rounded = sum(weight.nbytes for weight in onto_grids if weight is not None)
        self._device, self._width = head_weight(model).device, head_weight(model).shape[1]
        refuse_offload(settings, self._device.type)
        self._capacity = self._pack_tokens(train)
        self.dev_packs: list[Pack] = []
        if dev is not None:
            self.dev_packs = step_packs(dev, [tuple(range(len(dev)))], settings.max_length, self._pack_tokens(dev))
        self._stack = ExitStack()
        self._team: Team | None = None
        self._packs: dict[int, list[Pack]] = {}  # of this step; on a GPU of the next as well
        self._layout = Slots(self._parameters)
        self._slots = 0
        self._gradients_b = torch.empty(0, dtype=torch.uint8)
        self.shape = self._shape() if group is None else Shape(group.size, 1, "launched together")
        self._together: Together | None = None
        self.summands = 1
        self.in_step = group is not None and (settings.shard or settings.sequence_parallel > 1)
        if group is not None:
            ways = Ways(
                exact=self._device.type == "cpu" and EXACT_ON_CPU,
                sharded=settings.shard,
                part=split_sequences(model, group, settings.sequence_parallel),
            )
            self.summands = 1 if ways.exact and ways.part is None else group.size
            cost = partial(flop_of, width=self._width)
            self._together = Together(group, model, self._parameters, self.packs, self.dev_packs, cost, seed, ways)
        self.largest = Largest(ranks=self.shape.ranks if group is None else 1)  # of this process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def threads(self) -> int | None:
        """Threads of each process; None where a GPU computes."""
        return self.shape.threads if self._device.type == "cpu" else None

    def packs(self, number: int) -> list[Pack]:
        """The packs of a step, counted from 0."""
        if number not in self._packs:
            packs = step_packs(self._train, self._steps[number][1], self._settings.max_length, self._capacity)
            is_ahead = self._device.type != "cpu" and number - 1 in self._packs
            self._packs = {number - 1: self._packs[number - 1], number: packs} if is_ahead else {number: packs}
        return self._packs[number]

    def _prepare(self, number: int) -> None:
        """Put the packs of a step together while a GPU computes the one before it."""
        if self._device.type != "cpu" and number < len(self._steps):
            self.packs(number)

    def start(self) -> None:
        """Fork the others, where they are not there yet. Outside of the contexts in which a step computes."""
        if self._team is not None or self._together is not None:
            return
        ranks = self.shape.ranks
        if self._device.type == "cpu":
            logger.info(f"train: {self.shape}")
        if ranks > 1:
            self._share()
            hardware.release_freed_memory()
        hint = f"train.ranks: {ranks - 1} needs less memory; a run goes on with any number of processes"
        self._team = self._stack.enter_context(Team(ranks, "training process", self._work, self._begin, TrainingError, hint))

    def gradients(self, number: int) -> StepSums:
        """Leave the gradients of a step in ``.grad``."""
        packs = self.packs(number)
        self.largest = self.largest.joined(packs)
        if self._together is not None:
            return _step_sums(self._together.gradients(number), packs)
        if self._team is None or self._team.size == 1:
            context = StepContext(seed=self._seed, step=number)
            loss, accuracy = step_gradients(self._model, packs, context, lambda: self._prepare(number + 1))
            return StepSums(loss, accuracy, context.counters.overflow.total())
        sums: list[tuple[float, int, int]] = []
        gradients: list[Tensor | None] = [None] * len(self._parameters)
        for first in range(0, len(packs), self._slots):
            some = range(first, min(first + self._slots, len(packs)))
            order = [first + n for n in longest_first([flop_of(packs[n], self._width) for n in some])]
            results = self._team.run(JOB.pack(STEP, number), order)
            sums += [RESULT.unpack_from(results[n]) for n in some]
            for slot, item in enumerate(some):
                self._layout.add(gradients, self._slot(slot), results[item][RESULT.size :])
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return _step_sums(sums, packs)

    def follow(self) -> None:
        """Compute for the process that leads, in one that was launched with it, until the training ends.

        Raises:
            RunError: the process that leads is gone.
        """
        assert self._together is not None, "a training that forks"
        less, fixed = keep_less(self._model, self._settings), deterministic(self._settings.deterministic)
        with attention(self._model.eval(), PACKED), less, fixed, threads(self.threads):
            self._together.follow()

    def dev_loss(self) -> float:
        """Mean cross-entropy (nats a supervised token) over the dev documents, without dropout."""
        tokens = supervised_tokens(self.dev_packs)
        if self._together is not None:
            return sum(self._together.dev_sums()) / tokens
        if self._team is None or self._team.size == 1:
            return mean_loss(self._model, self.dev_packs)
        results = self._team.run(JOB.pack(DEV, 0), longest_first([flop_of(pack, self._width) for pack in self.dev_packs]))
        sums = [RESULT.unpack(results[number])[0] for number in range(len(self.dev_packs))]
        return sum(sums) / tokens

    def _share(self) -> None:
        """Put the adapter where the forked processes see its changes, and make the slots."""
        size = self._layout.size
        self._slots = min(MOST_SLOTS, max(2 * self.shape.ranks, SLOT_BYTES // size))
        self._gradients_b = torch.frombuffer(shared_memory(self._slots * size), dtype=torch.uint8)
        weights_b = torch.frombuffer(shared_memory(size), dtype=torch.uint8)
        for parameter, shared in zip(self._parameters, self._layout.views(weights_b), strict=True):
            shared.copy_(parameter.data)
            parameter.data = shared

    def _slot(self, number: int) -> Tensor:
        return self._gradients_b[number * self._layout.size : (number + 1) * self._layout.size]

    def _begin(self) -> None:
        """In a forked process: compute as the first one does in a step, for good."""
        torch.set_num_threads(self.shape.threads)
        self._stack = ExitStack()
        self._stack.enter_context(attention(self._model.eval(), PACKED))
        self._stack.enter_context(keep_less(self._model, self._settings))
        self._stack.enter_context(deterministic(self._settings.deterministic))

    def _work(self, job: bytes, item: int) -> bytes:
        """One pack, in any of the processes; its gradient goes to its slot."""
        kind, number = JOB.unpack(job)
        if kind == DEV:
            with torch.no_grad():
                return RESULT.pack(float(pack_loss(self._model, self.dev_packs[item])[0]), 0, -1)
        packs = self.packs(number)
        for parameter in self._parameters:
            parameter.grad = None
        counters = Counters()
        with at_step(self._model, StepContext(seed=self._seed, step=number, counters=counters)) as enter:
            enter(item)
            pack_sum, right = pack_loss(self._model, packs[item], counters)
            (pack_sum / supervised_tokens(packs)).backward()
        marks = self._layout.fill(self._slot(item % self._slots))
        for parameter in self._parameters:
            parameter.grad = None
        rescued = counters.overflow.total()
        return RESULT.pack(float(pack_sum.detach()), int(right), -1 if rescued is None else rescued) + marks

    def _pack_tokens(self, documents: Documents) -> int:
        """Tokens of a pack where nothing is shared: on a CPU there should be several in a step."""
        if self._device.type != "cpu":
            return self._settings.max_length
        return pack_tokens(self._settings.tokens_per_step, int(documents.lengths.max()), self._settings.max_length)

    def _shape(self) -> Shape:
        asked = self._settings.ranks
        if self._device.type != "cpu":
            if asked != "auto" and asked > 1:
                raise TrainingError(f"train.ranks: {asked}, but the model is on {self._device.type}", "use train.ranks: auto")
            return Shape(1, torch.get_num_threads(), "a GPU")
        first = [self.packs(number) for number in range(min(FIRST_STEPS, len(self._steps)))]
        tokens = max(pack.ids_1T.shape[1] for packs in first for pack in packs)
        kept = {"none": 1.0, "attention": 0.8, "mlp": 0.6, "layer": 0.1}.get(str(self._settings.recompute), 1.0)
        layers = int(self._model.config.num_hidden_layers)
        itemsize = max(head_weight(self._model).element_size(), 2)  # a head in 8 bits has wider states
        activations = int(tokens * layers * kept * WIDTHS_KEPT * self._width * itemsize)
        trained = sum(parameter.nbytes for parameter in self._parameters)
        weights = self._model.get_memory_footprint()
        return shape_of(
            asked,
            Load(
                items=max(map(len, first)),
                flop=max(sum(pack.ids_1T.shape[1] for pack in packs) for packs in first) * 72.0 * layers * self._width**2,
                rank_bytes=activations + HELD * trained + self._rounded + OTHER_BYTES,
                base_bytes=weights,
                limit=None if self._settings.memory in ("auto", "off") else parse_amount(self._settings.memory),
            ),
            obstacle_to_computing(),
        )


def _step_sums(sums: Sequence[tuple[float, float, float]], packs: Sequence[Pack]) -> StepSums:
    """What a step comes to, from summed loss, right guesses and rescued rows (-1: not counted) of each of its packs."""
    total = supervised_tokens(packs)
    losses, right, rescued = zip(*sums, strict=True)
    counted = [int(rows) for rows in rescued if rows >= 0]
    return StepSums(sum(losses) / total, sum(right) / total, sum(counted) if counted else None)
