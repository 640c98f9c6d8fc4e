"""Frozen layers that are not where they are computed: a model larger than a card's memory, or than a machine's.

A fine-tuning of an adapter reads every frozen layer twice a pass and writes none. So the layers can lie where memory is plenty,
and come by when they are due: 8B then takes two slots of 0.11 GB on the GPU in place of 3.6 GB, 70B two of 0.44 GB in place of
35.

Where they lie follows from the device and from what is free, and is said:

* a **CPU** computes from the mapped file (``reading.py``): nothing is copied, and a model larger than memory trains at the
  speed of the disk;
* of several processes **each has a share** (``sharded.py``), where the training asks for it;
* a **GPU** has a ring of slots (``ring.py``), filled from page-locked memory of the host; from the file where the host has no
  room for the layers or will not lock so much.

The numbers are those of a resident model to the bit: the same bytes go through the same products.

Refused: managed memory and mapped reads on a GPU (page faults, 0.6 GB/s); pageable copies in silence; wrapping modules (peers'
adapters were saved under names that nobody read back).

Names that end in ``_b`` are of bytes.
"""

import logging
from typing import Protocol

import torch
from torch import Tensor

from tunesmith import hardware
from tunesmith.formatting import gb
from tunesmith.launch.group import Group
from tunesmith.memory.order import Order
from tunesmith.memory.reading import FileReader, MappedFile, PinnedArenas, arena_sizes
from tunesmith.memory.ring import SLOTS, Copier, Ring, ThreadCopier
from tunesmith.memory.sharded import ShardedLayers
from tunesmith.memory.store import Store

logger = logging.getLogger(__name__)

HEADROOM = 1.25  # of the pinned bytes, that the host must have free: other programs, rows, checkpoints


class Layers(Protocol):
    """Whoever hands out the bytes of layers."""

    @property
    def device(self) -> torch.device:
        """Where they are handed out."""
        ...

    @property
    def spared(self) -> int:
        """Bytes that a resident model would hold there, and this one does not."""
        ...

    def layer(self, number: int) -> Tensor:
        """The bytes of a layer, valid until another layer is asked for."""
        ...


class MappedLayers:
    """Layers of a mapped file on a CPU; the first ones are copied into memory of this process.

    Args:
        store: of the layers.
        resident: how many of the first layers stay in memory.
    """

    def __init__(self, store: Store, resident: int):
        self.device = torch.device("cpu")
        self._file = MappedFile(store)
        self._order = Order(resident, len(store.layers))
        self._stay = [self._file.layer(number).clone() for number in range(resident)]
        self._current: int | None = None

    @property
    def spared(self) -> int:
        """See ``Layers``; what the kernel keeps of the file it can drop."""
        return self._file.store.nbytes - sum(len(layer_b) for layer_b in self._stay)

    def layer(self, number: int) -> Tensor:
        """See ``Layers``.

        Raises:
            ModelError: the file has changed.
        """
        if number < len(self._stay):
            return self._stay[number]
        if number != self._current:
            self._current = number
            self._order.turn(number)
            for following in self._order.next(1):
                self._file.announce(following)
        return self._file.layer(number)


def open_layers(store: Store, device: torch.device, resident: int, group: Group | None = None) -> Layers:
    """The layers of a store for a device, and where they are is logged.

    Args:
        resident: how many of the first layers stay on the device; fewer than all.
        group: of processes among whom the others are shared out; None for one that has them all.

    Raises:
        ModelError: the file is damaged.
    """
    count = f"{len(store.layers) - resident} of {len(store.layers)}"
    total = sum(layer.nbytes for layer in store.layers[resident:])
    stay = f", {resident} stay" if resident else ""
    if group is not None:
        share = f"{gb(total // group.size)} in each of {group.size} processes"
        logger.info(f"sharding: {count} layers ({gb(total)}), {share}{stay}")
        return ShardedLayers(store, device, resident, group)
    if device.type != "cuda":
        logger.info(f"streaming: {count} layers ({gb(total)}) from {store.file}, mapped{stay}")
        return MappedLayers(store, resident)
    copier, where = _copier(store, device)
    ring = Ring(copier, device, resident)
    slots = f"{SLOTS} slots of {gb(store.largest)}"
    logger.info(f"streaming: {count} layers ({gb(total)}) from {where} through {slots} on the GPU{stay}")
    return ring


def _copier(store: Store, device: torch.device) -> tuple[Copier, str]:
    """From the memory of the host where it has room, else from the file; and where that is, for people."""
    stream = torch.cuda.Stream(device)
    empty_host_cache = getattr(torch.accelerator, "empty_host_cache", None)  # newer than the oldest PyTorch that will do
    if empty_host_cache is not None:
        empty_host_cache()  # of the arenas of a model that is gone
    pinned, free = sum(arena_sizes(store.nbytes)), hardware.available_memory()
    if pinned * HEADROOM <= free:
        try:
            return Copier(PinnedArenas(store, device), stream), f"{gb(pinned)} of page-locked memory"
        except RuntimeError as error:
            reason = f"{gb(pinned)} cannot be page-locked ({str(error).splitlines()[0]})"
    else:
        reason = f"{gb(free)} of memory are free, and page-locked layers want {gb(int(pinned * HEADROOM))}"
    logger.warning(f"streaming: {reason}; the layers are read from the disk, at its speed")
    return ThreadCopier(FileReader(store), stream), str(store.file)
