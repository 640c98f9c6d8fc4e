"""How many processes the work on one model is dealt out to, and with how many threads each.

Training deals out the packs of a step (``train/distributed.py``), answering its batches (``engines/deal.py``); the rule is one.
On a CPU there is a process with one thread a physical core (``processes.py`` says why), no more than there are items to deal
out and than memory has room for. Work that is shorter than what the messages cost stays in one process.

**Results do not depend on the number of processes**: an item is computed with one thread whenever it can be dealt out, in
whichever process, and in one process too. Where nothing can be dealt out (one item, a machine that holds what one process
needs, a process that cannot be forked) one process computes with a thread a core, which follows from work and machine alone,
never from the number that was asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from tunesmith import hardware
from tunesmith.errors import TrainingError
from tunesmith.processes import obstacle_to_forking

LIGHT = 1e10  # FLOP, a fifth of a second of a core: less is not dealt out


@dataclass(frozen=True, kw_only=True)
class Load:
    """What there is to compute and what it takes.

    Attributes:
        items: that can be dealt out at once, the most.
        flop: of all these.
        rank_bytes: that a process needs for itself.
        base_bytes: that lie in memory once.
        limit: bytes that all of it may take; None for what the machine has.
    """

    items: int
    flop: float
    rank_bytes: int
    base_bytes: int
    limit: int | None = None


class Shape(NamedTuple):
    """How many processes, with how many threads, and why, for people."""

    ranks: int
    threads: int
    reason: str

    def __str__(self) -> str:
        processes = "1 process" if self.ranks == 1 else f"{self.ranks} processes"
        return f"{processes} of {self.threads} thread{'' if self.threads == 1 else 's'} ({self.reason})"


def shape_of(asked: int | Literal["auto"], load: Load, obstacle: str | None) -> Shape:
    """The processes for some work on a CPU.

    Args:
        asked: the recipe's ``train.ranks``; ``auto`` where answers are asked.
        obstacle: why no process can be forked; None where it can.

    Raises:
        TrainingError: several processes were asked for, and cannot be.
    """
    cores = hardware.physical_cores()
    whole = hardware.total_memory() if load.limit is None else min(load.limit, hardware.total_memory())
    room = max(1, (whole - load.base_bytes) // load.rank_bytes)
    alone = None
    if obstacle is not None:
        alone = obstacle
    elif load.items == 1:
        alone = "one piece, which cannot be dealt out"
    elif room < 2:
        alone = f"two would need {2 * load.rank_bytes / 1e9:.1f} GB beside the model's {load.base_bytes / 1e9:.1f}"
    if alone is not None:
        if asked != "auto" and asked > 1 and obstacle is not None:
            raise TrainingError(f"train.ranks: {asked}, but {obstacle}", "use train.ranks: auto")
        return Shape(1, cores, alone)
    if asked != "auto":
        most = min(asked, load.items)
        return Shape(most, 1, f"train.ranks: {asked}" + (f", and {most} pieces to deal out" if most < asked else ""))
    if load.flop < LIGHT:
        return Shape(1, 1, "too little to be dealt out")
    free = min(room, max(1, hardware.available_memory() // load.rank_bytes))
    ranks = min(cores, load.items, free)
    limit = {free: "what memory has room for now", load.items: "one a piece", cores: "one a physical core"}
    return Shape(ranks, 1, limit[ranks])


def obstacle_to_computing() -> str | None:
    """Why a forked process cannot compute what this one can; None where it can.

    torch refuses a backward pass in a forked process once its parent has made one with a GPU in sight.
    """
    if torch.accelerator.is_available():
        return "torch sees a GPU, and then computes no gradients in a forked process"
    return obstacle_to_forking()


def longest_first(costs: Sequence[float]) -> list[int]:
    """Numbers of the items by falling cost, the first among equals first."""
    return sorted(range(len(costs)), key=lambda number: (-costs[number], number))


def deal(costs: Sequence[float], size: int) -> list[list[int]]:
    """Which items each process computes, by the rule of longest processing time; the same wherever it is asked.

    Args:
        costs: of the items.
        size: number of processes.

    Returns:
        Numbers of items by process, each list in rising order.
    """
    dealt: list[list[int]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for number in longest_first(costs):
        rank = min(range(size), key=lambda each: (loads[each], each))
        dealt[rank].append(number)
        loads[rank] += costs[number]
    return [sorted(items) for items in dealt]


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Within the block torch computes with so many threads; None: as many as it did."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
