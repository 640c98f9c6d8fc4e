"""What recomputed layers keep in host memory, while nobody reads it: their inputs, and what attention gave.

Under ``train.recompute: layer`` a layer keeps its input alone, and those inputs are what grows with layers times tokens:
254 KB a token in an 8B model, more than half of what training keeps there. From the end of a layer's forward pass to its
backward pass nobody reads its input. So it is copied to host memory beside the computation, and comes back while the layer
after it goes backward: 2 bytes a number each way beside thousands of operations (0.3 us a token and layer at 25 GB/s,
beside 3 us of arithmetic at 400 TFLOP/s).

**Order.** A second stream copies. Out: the input is held until the next layer has been launched, whose stream then waits for
the copy, so its memory goes back to the allocator at a known place (``record_stream``, which was refused, gives it back
whenever the host happens to look). Back: a layer asks for its input and by that starts the copy of the input before it. One
input more than computed with lies on the device, each way. The last is still there when its backward pass begins.

**Pinned memory** is page-locked in arenas of 256 MiB, because PyTorch rounds every pinned request up to a power of two, and
reused from pack to pack in blocks of 4 MiB; blocks that lie side by side are one copy.

**Attention is not computed twice.** Its forward pass is a quarter to a third of what a long row costs: 2 T q FLOP a token and
layer, more than all products from 35 thousand tokens on in an 8B model. Its output and its logsumexp are 2 q + 4 H bytes a
token and layer, as many as the input again, so with ``train.offload: attention`` they wait beside the inputs, two of each kind
on the device at once, and the second forward pass takes them as they are (``kernels/known_attention.py``).

What layers share (keys and values that later layers read) stays on the device. The result is the same to the bit.

Refused: inputs in 8 bits (recomputed activations would not be those of the forward pass); all saved tensors by PyTorch's
``save_on_cpu`` (a copy for each, waited for); its hooks around a checkpoint, which holds the tensors it is given beside
what the hooks make of them.

Source of the idea: activation offloading of TRL and Unsloth; MegaTrain (arXiv 2604.05091) for the two buffers.
"""

import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

ARENA = 1 << 28  # bytes
BLOCK = 1 << 22  # bytes: of 64 in an arena


class Kept:
    """Tensors that lie in host memory.

    Attributes:
        parts: shape and dtype of each, and where it lies, by numbers of blocks, ascending.
        before: what was kept before it, which backward asks for next.
    """

    def __init__(self, parts: list[tuple[torch.Size, torch.dtype, list[int]]], before: "Kept | None"):
        self.parts = parts
        self.before = None if before is None else weakref.ref(before)


class HostRing:
    """Host memory for what comes back in the opposite order.

    Args:
        device: where it is computed with; on a CPU the memory is plain and nothing runs beside.
        ahead: how many are on their way at once, each way.
    """

    def __init__(self, device: torch.device, ahead: int = 1):
        self._device, self._ahead = device, ahead
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arenas: list[Tensor] = []
        self._free: list[int] = []
        self._last: weakref.ref[Kept] | None = None
        self._leaving: list[_Moving] = []
        self._coming: list[_Moving] = []

    @property
    def host_bytes(self) -> int:
        """Of all arenas."""
        return len(self._arenas) * ARENA

    def put(self, *tensors: Tensor) -> Kept:
        """Begin to copy tensors out; their memory is free some ``put`` or ``take`` later, once whoever made them drops them."""
        self._settle(self._ahead - 1)
        there = [x.detach().contiguous() for x in tensors]
        parts = [(x.shape, x.dtype, self._claim(-(-x.nbytes // BLOCK))) for x in there]
        kept = Kept(parts, None if self._last is None else self._last())
        weakref.finalize(kept, self._free.extend, [block for *_, blocks in parts for block in blocks])
        pairs = (pair for x, (*_, blocks) in zip(there, parts, strict=True) for pair in self._pieces(blocks, x))
        event = self._copy(host.copy_(device, non_blocking=True) for host, device in pairs)
        self._leaving.append(_Moving(kept, there, event))
        self._last = weakref.ref(kept)
        return kept

    def take(self, kept: Kept) -> list[Tensor]:
        """The tensors again, and begin to copy those before them back."""
        still_here = next((moving for moving in self._leaving if moving.kept is kept), None)
        if still_here is not None:
            self._leaving.remove(still_here)
            tensors = still_here.tensors
        else:
            self._settle(0)
            arrived = next((moving for moving in self._coming if moving.kept is kept), None) or self._fetch(kept)
            self._wait_for(arrived)
            tensors = arrived.tensors
        self._prefetch(kept)
        return tensors

    def _prefetch(self, kept: Kept) -> None:
        """Have what was kept before this on its way back, and nothing else."""
        wanted: list[Kept] = []
        before = None if kept.before is None else kept.before()
        while before is not None and len(wanted) < self._ahead:
            wanted.append(before)
            before = None if before.before is None else before.before()
        here = {id(moving.kept) for moving in self._leaving}
        coming = {id(moving.kept): moving for moving in self._coming}
        self._coming = [coming.pop(id(one), None) or self._fetch(one) for one in wanted if id(one) not in here]
        for moving in coming.values():
            if moving.kept is not kept:
                self._wait_for(moving)  # nobody asked for it: its memory may not be given away while it is written to

    def _settle(self, left: int) -> None:
        """Let go of the oldest of what was copied out, but for so many."""
        while len(self._leaving) > left:
            self._wait_for(self._leaving.pop(0))

    def _wait_for(self, moving: "_Moving") -> None:
        if moving.event is not None:
            torch.cuda.current_stream(self._device).wait_event(moving.event)

    def _fetch(self, kept: Kept) -> "_Moving":
        tensors = [torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype, _ in kept.parts]
        pairs = (pair for x, (*_, blocks) in zip(tensors, kept.parts, strict=True) for pair in self._pieces(blocks, x))
        return _Moving(kept, tensors, self._copy(device.copy_(host, non_blocking=True) for host, device in pairs))

    def _copy(self, copies: Iterator[object]) -> Any:
        """Make the copies beside the computation, after what is launched so far; an event at their end, or None on a CPU."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for _ in copies:
                pass
            return None if self._stream is None else self._stream.record_event()

    def _claim(self, count: int) -> list[int]:
        """Numbers of free blocks; arenas are added where there are too few."""
        a_row = ARENA // BLOCK
        while len(self._free) < count:
            pinned = self._stream is not None
            self._free.extend(range(len(self._arenas) * a_row, (len(self._arenas) + 1) * a_row))
            self._arenas.append(torch.empty(ARENA, dtype=torch.uint8, pin_memory=pinned))
        self._free.sort()
        blocks = self._free[:count]
        del self._free[:count]
        return blocks

    def _pieces(self, blocks: list[int], x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Bytes of the host and of ``x`` that belong together, as few and as long as the blocks allow."""
        flat, a_row, done = x.view(-1).view(torch.uint8), ARENA // BLOCK, 0
        while blocks:
            run = 1
            while run < len(blocks) and blocks[run] == blocks[0] + run and blocks[run] // a_row == blocks[0] // a_row:
                run += 1
            size = min(run * BLOCK, len(flat) - done)
            start = blocks[0] % a_row * BLOCK
            yield self._arenas[blocks[0] // a_row][start : start + size], flat[done : done + size]
            done, blocks = done + size, blocks[run:]


class _Moving(NamedTuple):
    """Tensors of the device on their way, and the event after their copy."""

    kept: Kept
    tensors: list[Tensor]
    event: Any


class AttentionResult:
    """What the attention of a layer gave, in host memory between the layer's forward pass and its second one.

    Args:
        ring: where it waits, with the inputs of the layers.
    """

    def __init__(self, ring: HostRing):
        self._ring, self._kept = ring, None

    _kept: Kept | None

    def keep(self, *tensors: Tensor) -> None:
        """Begin to copy them out."""
        self._kept = self._ring.put(*tensors)

    def known(self) -> list[Tensor] | None:
        """The tensors, where the layer has been through already."""
        return None if self._kept is None else self._ring.take(self._kept)
