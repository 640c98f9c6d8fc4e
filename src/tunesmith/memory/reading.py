"""Three ways to the bytes of stored layers: a mapped file, the file read past the page cache, and pinned memory of the host.

* **Mapped**, on a CPU: layers are views of the file. The kernel reads what is touched, keeps as much as memory has room for and
  drops the rest, which it can read again; all processes of a training share the pages. What comes next is announced to it.
* **Pinned**, for a GPU while the memory of the host holds the model: copies across the bus run at its full rate and beside the
  computation from page-locked memory alone (at 32B the rest takes 6.6 times as long).
* **Read**, for a GPU where it does not: whole layers with direct I/O, four ranges at once. A mapped file gives 0.6 GB/s in page
  faults and a buffered one a third of what the disk can do; direct I/O gives what it can. Where the file system has no direct
  I/O that is said, and the file is read plainly.

**Arenas.** PyTorch's pinned allocator rounds every request up to a power of two, so 10 GB in tensors of 140 MB take 17. Here
the layers are one run, laid over arenas that are powers of two themselves. A failed request leaves an error behind that
the next kernel would report as its own; it is drained before anybody goes on.

Sources: ``open(2)`` on O_DIRECT; ``c10/cuda/CUDACachingHostAllocator`` of PyTorch.

Names that end in ``_b`` are of bytes.
"""

import logging
import mmap
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.memory.disk import SECTOR
from tunesmith.memory.store import Store

logger = logging.getLogger(__name__)

LARGEST_ARENA, SMALLEST_ARENA = 1 << 31, 1 << 20
READERS = 4


class Source(Protocol):
    """Where the bytes of a layer are read."""

    store: Store

    def pieces(self, number: int, staging_b: Tensor | None) -> Sequence[Tensor]:
        """The bytes of a layer in the memory of the host, in order; in ``staging_b`` where they are not there already."""
        ...

    def close(self) -> None:
        """Give back what does not end with the last reference."""
        ...


class MappedFile:
    """Layers as views of a mapped file, read-only.

    Args:
        store: what is mapped.
    """

    def __init__(self, store: Store):
        self.store = store
        self._checked: set[int] = set()
        with store.file.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nobody writes to a frozen weight
            self._file_b = torch.frombuffer(self._mapped, dtype=torch.uint8)

    def layer(self, number: int) -> Tensor:
        """The bytes of a layer.

        Raises:
            ModelError: they are not what was written.
        """
        layer = self.store.layers[number]
        layer_b = self._file_b[layer.start : layer.start + layer.nbytes]
        if number not in self._checked:
            self.store.check(number, layer_b)
            self._checked.add(number)
        return layer_b

    def pieces(self, number: int, staging_b: Tensor | None) -> Sequence[Tensor]:
        """See ``Source``."""
        return [self.layer(number)]

    def close(self) -> None:
        """See ``Source``; the mapping ends with its last view."""

    def announce(self, number: int) -> None:
        """Tell the kernel that a layer is wanted soon; it reads ahead on its own."""
        layer = self.store.layers[number]
        if layer.nbytes:
            self._mapped.madvise(mmap.MADV_WILLNEED, layer.start, layer.nbytes)


class FileReader:
    """Layers read into memory that the caller brings, with direct I/O where the file system has it.

    Args:
        store: what is read.
    """

    def __init__(self, store: Store):
        self.store = store
        self._checked: set[int] = set()
        self._plain = os.open(store.file, os.O_RDONLY)
        self._direct: int | None = None
        try:
            self._direct = os.open(store.file, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            logger.warning(f"streaming: {store.file} has no direct I/O ({error.strerror}); it is read through the page cache")
        self._pool = ThreadPoolExecutor(READERS, "layer reader")

    def read(self, number: int, out_b: Tensor) -> Tensor:
        """The bytes of a layer, in the first of ``out_b``.

        Raises:
            ModelError: the disk does not give them, or they are not what was written.
        """
        layer, out_b = self.store.layers[number], out_b[: self.store.layers[number].nbytes]
        try:
            self._read(layer.start, out_b)
        except OSError as error:
            raise ModelError(
                f"{self.store.file}: layer {number} cannot be read: {error.strerror}",
                f"look at the disk ('dmesg'); remove {self.store.directory}, it is made again from the checkpoint",
            ) from error
        if number not in self._checked:
            self.store.check(number, out_b)
            self._checked.add(number)
        return out_b

    def pieces(self, number: int, staging_b: Tensor | None) -> Sequence[Tensor]:
        """See ``Source``."""
        assert staging_b is not None, "a file is read into something"
        return [self.read(number, staging_b)]

    def _read(self, start: int, out_b: Tensor) -> None:
        share = -(-len(out_b) // (READERS * SECTOR)) * SECTOR or SECTOR
        ranges = [(start + at, out_b[at : at + share]) for at in range(0, len(out_b), share)]
        list(self._pool.map(lambda part: self._read_range(*part), ranges))

    def _read_range(self, start: int, out_b: Tensor) -> None:
        """One range, sectors whole, by as many calls as it takes."""
        aligned = out_b.data_ptr() % SECTOR == 0
        descriptor = self._direct if self._direct is not None and aligned else self._plain
        memory, done = out_b.numpy().data, 0
        while done < len(memory):
            count = os.preadv(descriptor, [memory[done:]], start + done)
            if count == 0:
                raise ModelError(
                    f"{self.store.file}: ends at byte {start + done:,}, expected {self.store.nbytes:,}",
                    f"it was cut while it was in use; remove {self.store.directory}, it is made again from the checkpoint",
                )
            done += count
            if done % SECTOR:
                descriptor = self._plain

    def close(self) -> None:
        """Give the descriptors back."""
        self._pool.shutdown()
        for descriptor in (self._plain, self._direct):
            if descriptor is not None:
                os.close(descriptor)


def page_aligned(nbytes: int, pinned: bool) -> Tensor:
    """Memory of the host that begins at a page, as direct I/O asks for."""
    whole_b = torch.empty(nbytes + SECTOR, dtype=torch.uint8, pin_memory=pinned)
    start = -whole_b.data_ptr() % SECTOR
    part_b = whole_b[start : start + nbytes]
    return part_b


def arena_sizes(nbytes: int) -> list[int]:
    """Powers of two that hold so many bytes together, the largest first; under 1 MiB too many."""
    sizes: list[int] = []
    while nbytes > 0:
        size = LARGEST_ARENA
        while size > SMALLEST_ARENA and size > nbytes:
            size //= 2
        sizes.append(size)
        nbytes -= size
    return sizes


class PinnedArenas:
    """Layers in page-locked memory of the host.

    Args:
        store: what is read into it.
        device: the GPU whose driver locks the pages.

    Raises:
        RuntimeError: so many pages cannot be locked; the device can be used.
    """

    def __init__(self, store: Store, device: torch.device):
        self.store = store
        try:
            self._arenas = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in arena_sizes(store.nbytes)]
        except RuntimeError:
            drain(device)
            raise
        reader = FileReader(store)
        staging_b = page_aligned(store.largest, pinned=False)
        for number in range(len(store.layers)):
            layer_b = reader.read(number, staging_b)
            start = 0
            for piece in self.pieces(number, None):
                piece.copy_(layer_b[start : start + len(piece)])
                start += len(piece)
        reader.close()

    def pieces(self, number: int, staging_b: Tensor | None) -> Sequence[Tensor]:
        """See ``Source``: two where a layer lies over the border of two arenas."""
        layer, found, start = self.store.layers[number], [], 0
        for arena in self._arenas:
            first, last = max(layer.start, start), min(layer.start + layer.nbytes, start + len(arena))
            if first < last:
                found.append(arena[first - start : last - start])
            start += len(arena)
        return found

    def close(self) -> None:
        """See ``Source``; the arenas go with their last view."""


def drain(device: torch.device) -> None:
    """Launch something that cannot fail, so that an error that a failed request left behind is not the next kernel's."""
    try:
        torch.zeros(1, device=device).add_(1)
    except RuntimeError as error:
        logger.info(f"streaming: drained what the failed request left behind ({error})")
