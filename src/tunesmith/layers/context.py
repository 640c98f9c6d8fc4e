"""Where a layer stands in training: what its dropout is drawn from, and what a step counts.

A step has no hidden state. The mask of a layer follows from (seed, step, pack, number of the layer), so it is the same whatever
was computed before, wherever the pack runs, and when a layer is recomputed in the backward pass: masks do not change with the
number of processes, the order of packs, a resumed run or a policy of recomputation. What a step counts (rows that fp16 would
have lost) is added up in an object that the step owns.

On a GPU, where a step of a small model is bound by launches, it also keeps what its products make of adapters in every pack:
casts of all of them, made together by the first layer that asks. Nothing writes to an adapter within a step, and with the step
they are dropped. Refused: keeping them as long as the version counters of their parameters stand still, which optimizers' own
kernels and ``.data`` write past.

The context is set on the layers of one model instance before each pack and taken off after the last, since a stock model
hands its layers no argument of ours. Within the block those layers train; the rest of the model computes as it does when it
is deployed. The base's own dropouts (0.1 in some older families) stay off: they are noise on frozen layers, and they draw from
torch's global generator. A layer that is called twice in a pack draws the same mask twice.

Refused: ``torch.manual_seed`` before each step (every call that draws in between moves all masks, and every process draws the
same); a module-global context (two models in one process); saving masks (memory, ``layers/dropout.py``).

Source of the idea: counter-based random numbers (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import nn

from tunesmith.kernels.fp16_scaled_mm import OverflowRows


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What a step counts.

    Attributes:
        overflow: rows of inputs and gradients that plain fp16 would have made infinite.
    """

    overflow: OverflowRows = field(default_factory=OverflowRows)


Made = TypeVar("Made")


class StepCache:
    """What is made once a step, of the latest variant alone.

    Args:
        layers: those that compute in the step.
    """

    def __init__(self, layers: Sequence[nn.Module] = ()) -> None:
        self.layers = layers
        self._slots: dict[tuple[object, str], tuple[object, Any]] = {}

    def get(self, owner: object, name: str, variant: object, make: Callable[[], Made]) -> Made:
        """What ``make`` gave for this owner, name and variant."""
        slot = (owner, name)
        if slot not in self._slots or self._slots[slot][0] != variant:
            self._slots[slot] = (variant, make())
        return self._slots[slot][1]


@dataclass(frozen=True, kw_only=True)
class PackContext:
    """One pack of one step.

    Attributes:
        pack: its number among all packs of the step, whichever process computes it.
        cache: of the step.
    """

    seed: int
    step: int
    pack: int
    counters: Counters
    cache: StepCache = field(default_factory=StepCache)

    def dropout_seed(self, index: int) -> int:
        """Seed of a layer's mask, 0 to 2^63 - 1.

        Args:
            index: number of the layer in the model.
        """
        digest = hashlib.blake2b(struct.pack("<4q", self.seed, self.step, self.pack, index), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """One optimizer step, or what one process computes of it.

    Attributes:
        seed: of the run.
        step: number of the step, from 0.
        counters: what is counted.
    """

    seed: int
    step: int
    counters: Counters = field(default_factory=Counters)

    def at(self, pack: int) -> PackContext:
        """The context of one pack."""
        return PackContext(seed=self.seed, step=self.step, pack=pack, counters=self.counters)


class InStep:
    """A layer that draws dropout or counts.

    Attributes:
        context: of the pack that is computed now; None outside of ``at_step``.
        index: number of the layer among its kind in the model.
    """

    context: PackContext | None = None
    index: int = 0

    def dropout_seed(self) -> int:
        """What this layer's mask is drawn from."""
        assert self.context is not None, "dropout outside of a step: compute within layers.context.at_step"
        return self.context.dropout_seed(self.index)

    @property
    def overflow(self) -> OverflowRows | None:
        """Where rows beyond fp16 are counted; None outside of a step."""
        return None if self.context is None else self.context.counters.overflow


@contextmanager
def at_step(model: nn.Module, context: StepContext) -> Iterator[Callable[[int], None]]:
    """Within the block the adapted layers of a model train, at a step.

    Yields:
        A function to call with the number of each pack before it is computed, forward and backward.
    """
    layers = [module for module in model.modules() if isinstance(module, InStep)]
    before = [layer.training for layer in layers]
    cache = StepCache(layers)
    for index, layer in enumerate(layers):
        layer.index = index

    def enter(pack: int) -> None:
        here = replace(context.at(pack), cache=cache)
        for layer in layers:
            layer.context = here

    _train(layers, [True] * len(layers))
    try:
        yield enter
    finally:
        _train(layers, before)
        for layer in layers:
            layer.context = None


def _train(layers: Sequence[nn.Module], modes: list[bool]) -> None:
    for layer, mode in zip(layers, modes, strict=True):
        layer.train(mode)
