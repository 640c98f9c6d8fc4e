"""One training in processes that were launched together (``launch/group.py``): each computes some packs of a step.

The first process owns the training. Before every step it sends the weights of the adapter; each process computes its packs; the
gradients come together in the first, which makes the optimizer's step. Nothing else is anywhere twice: moments, clipping,
spikes, a race of rates and checkpoints are the first one's, and the others cannot drift from it. What is sent a step is what a
sum over all would send: once the adapter there, once its gradient back (168 MB each way for 42M weights, some 10 ms between
cards of one machine).

**Exact.** The loss of a step is the sum over the supervised tokens of all its packs by their number in the *whole step*, which
every process knows, since it plans all packs (``data/pack.py``); so gradients are summed and never averaged. Dropout follows
from (seed, step, pack). On a CPU the gradient of every pack comes by itself, and the first process adds them in the order of
the packs: the bytes are those of one process. Between GPUs each process adds its packs up, and one flat fp32 sum over the
processes follows: equal to one process up to the order of additions, and to itself as long as their number stays.

**Even.** Packs are dealt by their FLOP, the longest first to whoever has least (Graham 1969), in the same way by everyone.

**Sharded** (``train.shard``, ``memory/sharded.py``): every layer is put together from the shares of all processes, in step; so
all of them go through as many packs. Whoever has fewer goes through the shortest of the step again, and what comes of it is
thrown away.

**In parts** (``train.sequence_parallel``, ``layers/sequence.py``): neighbours compute every pack together, each a run of its
tokens, and the sum over the processes is the sum over the tokens. Before the first step the loss of some tokens is compared
with that of the whole: a mixture that runs on over the row shows there (one of neighbours alone is refused for every training,
``train/health.py``).

**Where memory ends** in one, all hear of it once they have computed, nothing is exchanged, and the first one decides; but in
the middle of a pass in step there is nobody to tell, and the others end with it.

Shape suffixes: T tokens.
"""

import logging
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, TrainingError
from tunesmith.kernels.attention import Span
from tunesmith.launch.group import Group, Order, Part
from tunesmith.layers.attention import FusedAttention
from tunesmith.layers.context import Counters, StepContext, at_step
from tunesmith.layers.sequence import refuse_heads
from tunesmith.models.ranks import deal
from tunesmith.models.recompute import decoder_layers
from tunesmith.train.documents import Pack, pack_part, supervised_tokens
from tunesmith.train.slots import Slots, aligned
from tunesmith.train.step import pack_loss

logger = logging.getLogger(__name__)

STEP, DEV, END, CHECK = 1, 2, 3, 4
CHECKED = 1024  # tokens
TOLERANCE = 0.01  # of a loss, between two orders of addition in 16 bits
PART_BITS = 32  # dropout of a part follows from its number too
SLOT_BYTES = 1 << 30  # of gradients that lie beside each other
FIGURES = struct.Struct("<ddd")  # summed loss, right guesses, rescued rows (-1: not counted)


class OthersFull(torch.OutOfMemoryError):
    """The memory of another process ended."""


class PackSums(NamedTuple):
    """What a pack comes to, beside its gradient.

    Attributes:
        loss: summed, in nats.
        right: top-1 guesses.
        rescued: rows that fp16 would have lost; -1 where none are counted.
    """

    loss: float
    right: float
    rescued: float


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How a training is computed together.

    Attributes:
        exact: add gradients up in the order of the packs, so that bytes do not depend on the number of processes.
        sharded: every pass is an exchange, so all go through as many packs.
        part: processes that compute every pack together, this one among them; None where each computes its own.
    """

    exact: bool
    sharded: bool = False
    part: Part | None = None


def split_sequences(model: PreTrainedModel, group: Group, size: int) -> Part | None:
    """Let so many processes compute every pack together, each a run of its tokens; None for one.

    Raises:
        RunError: the processes cannot be divided so.
        ModelError: heads that cannot be dealt out so, or attention that is not ours.
    """
    attentions = {name: module for name, module in model.named_modules() if isinstance(module, FusedAttention)}
    part = None if size == 1 else group.parts(size)
    if part is not None and len(attentions) < len(decoder_layers(model)):
        raise ModelError(
            f"train.sequence_parallel: {size}, but {type(model).__name__} mixes tokens in modules that are not ours",
            "train.sequence_parallel: 1; docs/reference/families.md lists the families whose attention is fused",
        )
    for name, module in attentions.items():
        if part is not None:
            refuse_heads(name, module.heads.num_heads, module.heads.num_kv_heads or module.heads.num_heads, size)
        module.part = part
    return part


class Together:
    """A training as one of its processes sees it.

    Args:
        group: of all its processes.
        model: adapted and ready, the same in all.
        parameters: that are trained.
        packs: of a step, by its number.
        dev_packs: whose loss is taken.
        cost: of a pack, but for a common factor.
        seed: of dropout.
        ways: how they compute.
    """

    def __init__(
        self,
        group: Group,
        model: PreTrainedModel,
        parameters: Sequence[torch.nn.Parameter],
        packs: Callable[[int], list[Pack]],
        dev_packs: list[Pack],
        cost: Callable[[Pack], float],
        seed: int,
        ways: Ways,
    ):
        self._group, self._model, self._parameters = group, model, list(parameters)
        self._packs, self._dev_packs, self._cost, self._seed, self._ways = packs, dev_packs, cost, seed, ways
        self._is_checked = ways.part is None
        self._in_step = ways.sharded or ways.part is not None
        self._message = _Message(self._parameters)

    def gradients(self, number: int) -> list[PackSums]:
        """Leave the gradients of a step in ``.grad``, in the process that leads.

        Raises:
            RunError: a process is gone.
            OutOfMemoryError: the memory of a process ended.
        """
        if not self._is_checked:
            self._group.order(Order(CHECK, number))
            self._check(number)
        self._group.order(Order(STEP, number))
        return self._step(number)

    def dev_sums(self) -> list[float]:
        """Summed losses of the dev packs, in the process that leads.

        Raises:
            RunError: a process is gone.
            OutOfMemoryError: the memory of a process ended.
        """
        self._group.order(Order(DEV, 0))
        return self._dev()

    def follow(self) -> None:
        """Do as the first process says, until the training ends.

        Raises:
            RunError: the first process is gone.
        """
        while (order := self._group.order()).kind != END:
            if order.kind == CHECK:
                self._check(order.number)
            elif order.kind == STEP:
                self._step(order.number)
            else:
                self._dev()

    def _step(self, number: int) -> list[PackSums]:
        self._group.spread(self._parameters)
        packs = self._packs(number)
        if not self._ways.exact or self._ways.part is not None:
            return self._step_of_sums(number, packs)
        total = supervised_tokens(packs)
        turns = max(2 * self._group.size, SLOT_BYTES // self._message.size)
        gradients: list[Tensor | None] = [None] * len(self._parameters)
        sums: list[PackSums] = []
        for first in range(0, len(packs), turns):
            some = packs[first : first + turns]
            for slot in self._slots(number, some, first, total):
                sums.append(self._message.add(slot, gradients))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return sums

    def _slots(self, number: int, packs: Sequence[Pack], first: int, total: int) -> list[Tensor]:
        """A slot for each of some packs, in their order, in the process that leads; none in the others."""
        dealt = self._dealt(packs)
        own: dict[int, Tensor] = {}
        posted = []
        for item in dealt[self._group.rank]:
            self._drop_gradients()
            own[item] = self._message.filled(self._backward(number, first + item, packs[item], total).read())
            if not self._group.leads:
                posted.append(self._group.post(own[item]))
        self._keep_in_step(dealt, packs, number)
        self._drop_gradients()
        self._group.wait_for_all()
        if not self._group.leads:
            self._group.settle(posted)
            return []
        for rank, items in enumerate(dealt):
            for item in items if rank else ():
                own[item] = self._message.empty()
                self._group.take(own[item], rank)
        return [own[item] for item in range(len(packs))]

    def _step_of_sums(self, number: int, packs: Sequence[Pack]) -> list[PackSums]:
        """A step whose gradients are added up in each process first."""
        total, dealt = supervised_tokens(packs), self._dealt(packs)
        computed: dict[int, _Computed] = {}
        flat, has_gradient = torch.empty(0), torch.empty(0)

        def compute() -> None:
            nonlocal flat, has_gradient
            self._drop_gradients()
            for item in dealt[self._group.rank]:
                computed[item] = self._backward(number, item, packs[item], total)
            has_gradient = torch.tensor([float(p.grad is not None) for p in self._parameters], dtype=torch.float64)
            flat = torch.cat([_flat_gradient(parameter).to(self._group.device) for parameter in self._parameters])
            self._keep_in_step(dealt, packs, number)

        is_whole = self._compute(compute)
        self._drop_gradients()
        if not is_whole:
            return []
        figures = torch.zeros(len(packs), 3, dtype=torch.float64)
        for item, sums in computed.items():  # read when all is under way: a GPU runs one pack while the next is copied to it
            figures[item] = torch.tensor(sums.read(), dtype=torch.float64)
        told = self._group.sum_up(torch.cat([figures.view(-1), has_gradient]).to(self._group.device)).cpu()
        self._group.sum_up(flat)
        start, marks = 0, told[figures.numel() :].tolist()
        for parameter, mark in zip(self._parameters, marks, strict=True):
            part = flat[start : start + parameter.numel()].view(parameter.shape)
            parameter.grad = part.to(parameter.device, parameter.dtype) if mark and self._group.leads else None
            start += parameter.numel()
        return [PackSums(*row) for row in told[: figures.numel()].view(-1, 3).tolist()]

    def _compute(self, work: Callable[[], None]) -> bool:
        """Compute the share of this process and wait for the others; whether the memory of none ended.

        Raises:
            OutOfMemoryError: it ended, in the process that leads; the others are told what to do next.
        """
        full: torch.OutOfMemoryError | None = None
        try:
            work()
        except torch.OutOfMemoryError as error:
            if self._in_step:
                raise
            full = error.with_traceback(None)  # whose frames hold what was computed
            logger.warning(f"the memory of rank {self._group.rank} is full: {error}")
        lacking = self._group.wait_for_all(full is not None)
        if lacking and self._group.leads:
            raise full or OthersFull(f"the memory of rank {lacking[0]} is full; its log says more")
        return not lacking

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _backward(self, step: int, number: int, pack: Pack, total: int) -> "_Computed":
        """Add the gradient of a pack to ``.grad``."""
        counters = Counters()
        with at_step(self._model, StepContext(seed=self._seed, step=step, counters=counters)) as enter:
            enter(number if self._ways.part is None else number + (self._ways.part.rank << PART_BITS))
            loss, right = pack_loss(self._model, self._own(pack), counters)
            (loss / total).backward()
        return _Computed(loss.detach(), right, counters)

    def _dealt(self, packs: Sequence[Pack]) -> list[list[int]]:
        """Which packs each process computes, alone or with its neighbours."""
        costs, part = [self._cost(pack) for pack in packs], self._ways.part
        if part is None:
            return deal(costs, self._group.size)
        return [items for items in deal(costs, self._group.size // part.size) for _ in range(part.size)]

    def _own(self, pack: Pack) -> Pack:
        """What this process computes of a pack."""
        part = self._ways.part
        return pack if part is None else pack_part(pack, part.rank, part.size)

    @torch.no_grad()
    def _check(self, number: int) -> None:
        """Compare the loss of some tokens in parts with that of the whole, which each process computes alone.

        Raises:
            TrainingError: they differ: something in the model mixes tokens that is not attention.
        """
        part = self._ways.part
        assert part is not None
        self._is_checked = True
        ids_1T = self._packs(number)[0].ids_1T[:, :CHECKED]
        tokens = ids_1T.shape[1]
        whole = Pack(
            ids_1T, torch.arange(tokens)[None], [Span(0, tokens, 0, 0)], torch.arange(tokens - 1), ids_1T[0, 1:].clone()
        )
        attentions = [module for module in self._model.modules() if isinstance(module, FusedAttention)]
        for module in attentions:
            module.part = None
        alone = float(pack_loss(self._model, whole)[0])
        for module in attentions:
            module.part = part
        loss = torch.tensor([float(pack_loss(self._model, self._own(whole))[0])], dtype=torch.float64)
        groups = self._group.size // part.size
        parts = float(self._group.sum_up(loss.to(self._group.device))) / groups
        if self._group.leads and math.isfinite(alone) and not abs(parts - alone) <= TOLERANCE * max(1.0, abs(alone)):
            raise TrainingError(
                f"train.sequence_parallel: {part.size}: {tokens} tokens in parts have a loss of {parts:.4f}, as a whole "
                f"{alone:.4f}: this model mixes tokens outside of attention",
                "train.sequence_parallel: 1",
            )

    def _passes_left(self, dealt: Sequence[Sequence[int]]) -> int:
        """How many packs another process goes through after the last of this one, where all must be in step."""
        return max(map(len, dealt)) - len(dealt[self._group.rank]) if self._ways.sharded else 0

    def _keep_in_step(self, dealt: Sequence[Sequence[int]], packs: Sequence[Pack], step: int) -> None:
        """Go through a short pack as often as others have packs left; what it leaves in ``.grad`` is thrown away."""
        for _ in range(self._passes_left(dealt)):
            self._drop_gradients()
            self._backward(step, 0, min(packs, key=self._cost), 1)

    @torch.no_grad()
    def _dev(self) -> list[float]:
        self._group.spread(self._parameters)
        dealt = self._dealt(self._dev_packs)
        losses: dict[int, Tensor] = {}

        def compute() -> None:
            for item in dealt[self._group.rank]:
                losses[item] = pack_loss(self._model, self._own(self._dev_packs[item]))[0]
            for _ in range(self._passes_left(dealt)):
                pack_loss(self._model, self._own(min(self._dev_packs, key=self._cost)))

        if not self._compute(compute):
            return []
        sums = torch.zeros(len(self._dev_packs), dtype=torch.float64)
        for item, loss in losses.items():
            sums[item] = float(loss)
        return self._group.sum_up(sums.to(self._group.device)).tolist()


class _Computed(NamedTuple):
    """What a pack comes to, where it was computed: whoever reads it waits for that."""

    loss: Tensor
    right: Tensor
    counters: Counters

    def read(self) -> PackSums:
        """As numbers."""
        rescued = self.counters.overflow.total()
        return PackSums(float(self.loss), float(self.right), -1.0 if rescued is None else float(rescued))


class _Message:
    """How a pack's figures and gradients are sent: the figures, a byte a weight, and a slot (``train/slots.py``)."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]):
        self._layout = Slots(parameters)
        self._marks = slice(FIGURES.size, FIGURES.size + len(parameters))
        self._begin = aligned(self._marks.stop)
        self.size = self._begin + self._layout.size

    def empty(self) -> Tensor:
        """Room for one."""
        return torch.empty(self.size, dtype=torch.uint8)

    def filled(self, sums: PackSums) -> Tensor:
        """Figures, and what lies in ``.grad``."""
        message_b = torch.zeros(self.size, dtype=torch.uint8)
        head = FIGURES.pack(*sums) + self._layout.fill(message_b[self._begin :])
        message_b[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        return message_b

    def add(self, message_b: Tensor, gradients: list[Tensor | None]) -> PackSums:
        """Add a pack's gradients to those of the packs before, and return its figures."""
        head = bytes(message_b[: self._marks.stop].tolist())
        self._layout.add(gradients, message_b[self._begin :], head[self._marks])
        return PackSums(*FIGURES.unpack_from(head))


def _flat_gradient(parameter: torch.nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.reshape(-1).float()
