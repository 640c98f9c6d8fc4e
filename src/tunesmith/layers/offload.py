"""Inputs of recomputed layers in host memory, while nobody reads them.

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

What layers share (keys and values that later layers read) stays on the device. The result is the same to the bit.

Refused: inputs in 8 bits (recomputed activations would not be those of the forward pass); all saved tensors by PyTorch's
``save_on_cpu`` (a copy for each, waited for); its hooks around a checkpoint, which holds the tensors it is given beside
what the hooks make of them.

Source of the idea: activation offloading of TRL and Unsloth; MegaTrain (arXiv 2604.05091) for the two buffers.
"""

import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

ARENA = 1 << 28  # bytes
BLOCK = 1 << 22  # bytes: of 64 in an arena


class Kept:
    """An input that lies in host memory.

    Attributes:
        shape, dtype: of it.
        blocks: where it lies, by number, ascending.
        before: the one that was kept before it, which backward asks for next.
    """

    def __init__(self, x: Tensor, blocks: list[int], before: "Kept | None"):
        self.shape, self.dtype, self.blocks = x.shape, x.dtype, blocks
        self.before = None if before is None else weakref.ref(before)


class HostRing:
    """Host memory for inputs that come back in the opposite order.

    Args:
        device: where they are computed with; on a CPU the memory is plain and nothing runs beside.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arenas: list[Tensor] = []
        self._free: list[int] = []
        self._last: weakref.ref[Kept] | None = None
        self._leaving: tuple[Kept, Tensor, Any] | None = None  # with the event after its copy
        self._coming: tuple[Kept, Tensor, Any] | None = None

    @property
    def host_bytes(self) -> int:
        """Of all arenas."""
        return len(self._arenas) * ARENA

    def put(self, x: Tensor) -> Kept:
        """Begin to copy an input out; its memory is free after the next ``put`` or ``take``, once its layer drops it."""
        self._settle()
        x = x.detach().contiguous()
        kept = Kept(x, self._claim(-(-x.nbytes // BLOCK)), None if self._last is None else self._last())
        weakref.finalize(kept, self._free.extend, list(kept.blocks))
        event = self._copy((host.copy_(there, non_blocking=True) for host, there in self._pieces(kept, x)), x)
        self._leaving, self._last = (kept, x, event), weakref.ref(kept)
        return kept

    def take(self, kept: Kept) -> Tensor:
        """An input again, and begin to copy the one before it back."""
        if self._leaving is not None and self._leaving[0] is kept:
            x = self._leaving[1]
            self._leaving = None
        else:
            self._settle()
            ahead, self._coming = self._coming, None
            _, x, event = ahead if ahead is not None and ahead[0] is kept else self._fetch(kept)
            if event is not None:
                torch.cuda.current_stream(self._device).wait_event(event)
        before = None if kept.before is None else kept.before()
        self._coming = None if before is None else self._fetch(before)
        return x

    def _settle(self) -> None:
        """Let go of the input that was copied out last."""
        if self._leaving is not None and self._leaving[2] is not None:
            torch.cuda.current_stream(self._device).wait_event(self._leaving[2])
        self._leaving = None

    def _fetch(self, kept: Kept) -> tuple[Kept, Tensor, Any]:
        x = torch.empty(kept.shape, dtype=kept.dtype, device=self._device)
        return kept, x, self._copy((there.copy_(host, non_blocking=True) for host, there in self._pieces(kept, x)), x)

    def _copy(self, copies: Iterator[object], x: Tensor) -> Any:
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

    def _pieces(self, kept: Kept, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Bytes of the host and of ``x`` that belong together, as few and as long as the blocks allow."""
        flat, a_row, done, blocks = x.view(-1).view(torch.uint8), ARENA // BLOCK, 0, kept.blocks
        while blocks:
            run = 1
            while run < len(blocks) and blocks[run] == blocks[0] + run and blocks[run] // a_row == blocks[0] // a_row:
                run += 1
            size = min(run * BLOCK, len(flat) - done)
            start = blocks[0] % a_row * BLOCK
            yield self._arenas[blocks[0] // a_row][start : start + size], flat[done : done + size]
            done, blocks = done + size, blocks[run:]
