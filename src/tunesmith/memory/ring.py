"""A few slots of device memory through which the layers of a frozen model pass.

While layer i is computed from one slot, layer i + 1 is copied into another. A slot is as large as the largest layer, two are
enough to copy beside the computation, and the order is found out as it happens (``order.py``). On the turn from forward to
backward the last layers are there already: a step over L layers copies 2 (L - slots) of them, not 2 L.

**A stale slot is an error, never a wrong gradient.** A backward pass that reads a weight again may meet other bytes where they
were: peers trained 72B so, with 8 of 320 gradients right and a loss that looked healthy. Nobody keeps a slot here: a weight
asks for its layer at every product. Each fill has a number, given when it is ordered and written on the slot by whoever copied;
a layer is handed out only where the slot says that it holds this layer from this fill.

**On a GPU** copies run on a stream of their own, from page-locked memory. A slot is refilled behind an event that stands after
the last product that read it, and read behind one that stands after its copy; the host waits for neither. Where the layers are
read from a file (``reading.py``), a thread does both, and the host waits where the disk is slower than the computation. **On a
CPU** the same ring copies by a thread, into other memory: which is how every rule here is held by tests.

Cost: slots x the largest layer (0.23 GB for 8B, 0.9 GB for 70B). Copies are hidden from some 350 tokens a pass on (PCIe 4, 50
TFLOPS) to 2,400 (an H100): work and bytes are both proportional to the weights, so the number depends on the card alone.

Names that end in ``_b`` are of bytes.
"""

import queue
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.memory.order import Order
from tunesmith.memory.reading import FileReader, Source, page_aligned

STAGINGS = 2  # layers in page-locked memory on their way from a file to a GPU
SLOTS = 2


@dataclass
class Slot:
    """Memory for one layer.

    Attributes:
        bytes_b: as many as the largest layer has.
        holds: layer and number of the fill whose bytes lie here, or are on the way on the copying stream; by whoever copied.
        arrived: whether no copy is under way that the host does not know to be made, or queued on its stream.
        ready: on a GPU, after the copy; free: after the last read.
        error: that ended the copy.
    """

    bytes_b: Tensor
    holds: tuple[int, int] | None = None
    arrived: threading.Event = field(default_factory=threading.Event)
    ready: "torch.cuda.Event | None" = None
    free: "torch.cuda.Event | None" = None
    error: BaseException | None = None


class Copier:
    """Fills slots; the plain one does it at once, on the stream that it is given.

    Args:
        source: of the layers' bytes.
        stream: for copies to a GPU; None on a CPU.
    """

    def __init__(self, source: Source, stream: "torch.cuda.Stream | None"):
        self.source, self.stream = source, stream

    def order(self, slot: Slot, layer: int, fill: int) -> None:
        """See that a slot comes to hold a layer."""
        self.copy(slot, layer, fill, self.source.pieces(layer, None))

    def copy(self, slot: Slot, layer: int, fill: int, pieces: Sequence[Tensor]) -> None:
        """Copy a layer, behind the last read of the slot, and write on it what it holds."""
        if self.stream is None:
            _write(slot.bytes_b, pieces)
        else:
            with torch.cuda.stream(self.stream):
                if slot.free is not None:
                    self.stream.wait_event(slot.free)
                _write(slot.bytes_b, pieces)
                slot.ready = torch.cuda.Event()
                slot.ready.record(self.stream)
        slot.holds = (layer, fill)
        slot.arrived.set()

    def close(self) -> None:
        """End what runs beside."""


class ThreadCopier(Copier):
    """Fills slots in a thread, one after the other, in the order in which they were asked for."""

    def __init__(self, source: Source, stream: "torch.cuda.Stream | None"):
        super().__init__(source, stream)
        reads = isinstance(source, FileReader)
        count, nbytes = (STAGINGS, source.store.largest) if reads else (0, 0)
        self._stagings = [page_aligned(nbytes, stream is not None) for _ in range(count)]
        self._copied: list[torch.cuda.Event | None] = [None] * count
        self._orders: queue.SimpleQueue[tuple[Slot, int, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="layer copier", daemon=True)
        self._thread.start()

    def order(self, slot: Slot, layer: int, fill: int) -> None:
        """See ``Copier``."""
        self._orders.put((slot, layer, fill))

    def _work(self) -> None:
        turn = 0
        while (job := self._orders.get()) is not None:
            slot, layer, fill = job
            try:
                staging_b = None
                if self._stagings:
                    turn = (turn + 1) % len(self._stagings)
                    staging_b, copied = self._stagings[turn], self._copied[turn]
                    if copied is not None:
                        copied.synchronize()  # this thread waits, not the one that computes
                self.copy(slot, layer, fill, self.source.pieces(layer, staging_b))
                if self._stagings:
                    self._copied[turn] = slot.ready
            except (RuntimeError, ModelError, AssertionError) as error:
                slot.error = error
                slot.arrived.set()
            del job, slot  # or the last slot of a model that is gone stays on the device
        self.source.close()

    def close(self) -> None:
        """See ``Copier``; not waited for, since what ends a ring may be the collector, in this very thread."""
        self._orders.put(None)


class Ring:
    """Layers that pass through slots; the first ones stay.

    Args:
        copier: fills slots.
        device: of the slots.
        resident: how many of the first layers stay on the device.
        slots: at least two.

    Attributes:
        copied: bytes that were copied into slots.
        stalls: layers that were asked for before they had been ordered.
    """

    def __init__(self, copier: Copier, device: torch.device, resident: int, slots: int = SLOTS):
        store = copier.source.store
        assert slots >= 2 and resident + slots <= len(store.layers), "more room than layers: they can stay"
        self.store, self.device = store, device
        self.copied = self.stalls = 0
        self._copier, self._order = copier, Order(resident, len(store.layers))
        with torch.inference_mode(False):
            self._stay = [self._kept(number) for number in range(resident)]
            largest = max(layer.nbytes for layer in store.layers[resident:])
            self._slots = [Slot(torch.empty(largest, dtype=torch.uint8, device=device)) for _ in range(slots)]
        for slot in self._slots:
            if copier.stream is not None:
                slot.bytes_b.record_stream(copier.stream)  # so that a copy which nobody came for outlives the ring
            self._left(slot)  # the allocator may have given memory that queued work still reads
            slot.arrived.set()
        self._leases: dict[int, tuple[Slot, int]] = {}  # layer -> its slot and the number of the fill
        self._fills = 0
        weakref.finalize(self, copier.close)
        self._current: int | None = None
        self._is_here = False

    @property
    def spared(self) -> int:
        """Bytes that a resident model would hold on the device, and this one does not."""
        held = [*self._stay, *(slot.bytes_b for slot in self._slots)]
        return self.store.nbytes - sum(len(held_b) for held_b in held)

    def layer(self, number: int) -> Tensor:
        """The bytes of a layer on the device, valid until another layer is asked for.

        Raises:
            ModelError: a slot does not hold what it should, or the layer could not be read.
        """
        if number < len(self._stay):
            return self._stay[number]
        if number != self._current:
            self._turn(number)
        slot, fill = self._leases[number]
        if not self._is_here:
            self._await(slot)
        if slot.holds != (number, fill):
            raise ModelError(
                f"layer {number} is to be read from fill {fill} of its slot, which holds (layer, fill) {slot.holds}",
                "a fault of tunesmith, which would have been a wrong gradient: report it; train.resident_layers: all avoids it",
            )
        self._is_here = True
        return slot.bytes_b[: self.store.layers[number].nbytes]

    def _turn(self, number: int) -> None:
        """Make a layer the one of the moment, and order what comes after it."""
        if self._current is not None:
            self._left(self._leases[self._current][0])
        self._current, self._is_here = number, False
        self._order.turn(number)
        wanted = [number, *self._order.next(len(self._slots) - 1)]
        self.stalls += number not in self._leases
        for layer in wanted:
            if layer not in self._leases:
                self._fill(self._unwanted(wanted), layer)

    def _left(self, slot: Slot) -> None:
        """All that reads the slot has been launched."""
        if self.device.type == "cuda":
            slot.free = torch.cuda.Event()
            slot.free.record(torch.cuda.current_stream(self.device))

    def _unwanted(self, wanted: Sequence[int]) -> Slot:
        """A slot that holds nothing, or what is wanted last."""
        for layer in [layer for layer in self._leases if layer not in wanted]:
            slot, _ = self._leases.pop(layer)
            return slot
        taken = [slot for slot, _ in self._leases.values()]
        return next(slot for slot in self._slots if all(slot is not other for other in taken))

    def _fill(self, slot: Slot, layer: int) -> None:
        self._wait(slot)  # for a copy that nobody came for, where a guess was wrong
        self._fills += 1
        slot.arrived.clear()
        slot.holds = None
        self._leases[layer] = (slot, self._fills)
        self.copied += self.store.layers[layer].nbytes
        self._copier.order(slot, layer, self._fills)

    def _await(self, slot: Slot) -> None:
        """Behind a copy: the host until it is queued, the device until it is made."""
        self._wait(slot)
        if slot.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.ready)

    def _wait(self, slot: Slot) -> None:
        slot.arrived.wait()
        if slot.error is not None:
            raise slot.error

    def _kept(self, number: int) -> Tensor:
        """A layer that stays."""
        staging_b = page_aligned(self.store.layers[number].nbytes, self.device.type == "cuda")
        kept_b = torch.empty(self.store.layers[number].nbytes, dtype=torch.uint8, device=self.device)
        _write(kept_b, self._copier.source.pieces(number, staging_b))
        return kept_b


def _write(out_b: Tensor, pieces: Sequence[Tensor]) -> None:
    start = 0
    for piece in pieces:
        out_b[start : start + len(piece)].copy_(piece, non_blocking=True)
        start += len(piece)
