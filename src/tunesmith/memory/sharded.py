"""Layers of which every process holds a share: a model larger than one card's memory, on the cards of several.

Streaming (``memory/stream.py``) with the other cards in the place of the host's memory. Each of n processes keeps an nth of the
bytes of every layer, and a layer is put together in one of two slots when it is due, the next one while this one is computed
with: what FSDP2 calls a gather and a reshard (Zhao et al. 2023, arXiv 2304.11277). A model of 70B in NF4 (35.3 GB) takes
17.7 GB of each of two cards, and 0.9 for the slots. The numbers are those of a resident model to the bit: the same bytes go
through the same products, and no process ever holds more of a layer than its share and the slots, not while it loads either.

**In step.** Putting a layer together is an exchange between all processes, so all of them ask for the same layers in the same
order: ``train/together.py`` sees to it. Which layer is next is guessed from what was asked for (``order.py``), and whoever asks
alike guesses alike.

Refused: PyTorch's ``fully_shard`` itself. It shards parameters of a model that is on the card already, as a whole;
would turn our buffers into parameters and wrap every layer; and needs a root whose forward is called, where our loss calls the
decoder and the rows of the head apart. What is left of it for frozen bytes is one all-gather.

Names that end in ``_b`` are of bytes.
"""

import torch
from torch import Tensor

from tunesmith.launch.group import Group, Work
from tunesmith.memory.order import Order
from tunesmith.memory.reading import MappedFile
from tunesmith.memory.store import Store

ALIGNED = 256  # bytes


class ShardedLayers:
    """Layers of which each process of a group has a share; the first ones are whole in each.

    Args:
        store: of the layers; every process reads its own shares from it.
        device: of the shares and slots.
        resident: how many of the first layers are whole in each process.
        group: among whom the others are shared out.

    Raises:
        ModelError: the file is not what was written.
    """

    def __init__(self, store: Store, device: torch.device, resident: int, group: Group):
        self.device, self._group, self._store = device, group, store
        file = MappedFile(store)
        self._stay = [file.layer(number).to(device, copy=True) for number in range(resident)]
        self._shares = {n: self._share(file.layer(n)) for n in range(resident, len(store.layers))}
        largest = max((len(share_b) for share_b in self._shares.values()), default=0) * group.size
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self._holds: list[int | None] = [None, None]
        self._under_way: list[Work | None] = [None, None]
        self._at = 0  # the slot of the moment
        self._order = Order(resident, len(store.layers))
        self._current: int | None = None

    @property
    def spared(self) -> int:
        """See ``Layers``."""
        held = [*self._stay, *self._shares.values(), *self._slots]
        return self._store.nbytes - sum(len(held_b) for held_b in held)

    def layer(self, number: int) -> Tensor:
        """See ``Layers``.

        Raises:
            RunError: a process is gone.
        """
        if number < len(self._stay):
            return self._stay[number]
        if number != self._current:
            self._current = number
            self._order.turn(number)
            other = 1 - self._at
            if self._holds[other] != number:
                self._gather(number, other)
            self._at = other
            self._arrive(other)
            for following in self._order.next(1):
                self._gather(following, 1 - other)
        return self._slots[self._at][: self._store.layers[number].nbytes]

    def _share(self, layer_b: Tensor) -> Tensor:
        """This process's part of a layer, filled up so that all are alike."""
        size = -(-len(layer_b) // (self._group.size * ALIGNED)) * ALIGNED
        share_b = torch.zeros(size, dtype=torch.uint8)
        own_b = layer_b[self._group.rank * size : (self._group.rank + 1) * size]
        share_b[: len(own_b)] = own_b
        return share_b.to(self.device)

    def _gather(self, number: int, slot: int) -> None:
        """Begin to put a layer together; kernels that still read the slot come first, in the order of the device."""
        self._arrive(slot)
        share_b = self._shares[number]
        into_b = self._slots[slot][: len(share_b) * self._group.size]
        self._under_way[slot], self._holds[slot] = self._group.gather(share_b, into_b), number

    def _arrive(self, slot: int) -> None:
        work = self._under_way[slot]
        if work is not None:
            self._group.settle([work])
        self._under_way[slot] = None
