"""The NF4 layers of a frozen model as one file, a layer a run of whole sectors.

A model whose layers are streamed is quantised once, layer by layer, so that a machine never holds more than one of them;
afterwards the file is the model. It is kept in the cache under a fingerprint of the checkpoint, appears whole or not at all,
and holds the bytes that a model in memory would have (``kernels/nf4.py``): packed codes, codes of the absmax and their absmax.
What all weights share, the table of absmax codes, is no part of it.

A layer begins at a multiple of 4,096 bytes and is filled up to one, which is what direct I/O asks for; a part of a weight
begins at a multiple of 512 within its layer, as an allocation on a GPU does. Every layer has a checksum, which whoever reads it
for the first time compares: a file that has rotted is an error and no model.

Refused: safetensors (parts of a layer would lie apart, at any byte), a file a layer (a directory of 80 to open and to find one
missing), quantising anew at each start (2 minutes for 8B on one core).

Cost: the disk holds the base a second time, at 4.13 bits a weight (3.6 GB for 8B, 35 GB for 70B).
"""

import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.formatting import gb
from tunesmith.kernels.nf4 import NF4, dynamic_map
from tunesmith.memory.disk import PART, SECTOR, nf4_parts
from tunesmith.rundir.atomic import atomic_directory, free_bytes, full_disk_named
from tunesmith.rundir.file_lock import lock as wait_for_lock

logger = logging.getLogger(__name__)

BYTES, INDEX = "layers.bin", "index.json"
FORMAT = 2  # another number where the same weights make another file


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """Where a weight lies in the bytes of its layer.

    Attributes:
        name: full name in the model.
        shape: of the dense weight.
        dtype: of the weight before it was quantised.
        mean: of its absmax.
        starts: first bytes of packed codes, absmax codes and their absmax.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    mean: float
    starts: tuple[int, int, int]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of the three parts."""
        return nf4_parts(torch.Size(self.shape).numel())

    def parts(self, layer_b: Tensor) -> NF4:
        """The weight as views of its layer's bytes; nothing is copied."""
        packed, absmax, nested = (layer_b[a : a + n] for a, n in zip(self.starts, self.sizes, strict=True))
        return NF4(packed, absmax, nested.view(torch.float32), dynamic_map(layer_b.device), self.mean, self.shape)


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A layer's run of the file.

    Attributes:
        start: first byte, a multiple of ``SECTOR``.
        nbytes: as many, a multiple of ``SECTOR``.
        checksum: CRC-32 of them.
        weights: what lies in it.
    """

    start: int
    nbytes: int
    checksum: int
    weights: tuple[StoredWeight, ...]


@dataclass(frozen=True, kw_only=True)
class _Index:
    """What lies beside the bytes.

    Attributes:
        key: the name that the directory was written under: the fingerprint of what was quantised.
        layers: in the order of the model.
    """

    key: str
    layers: tuple[StoredLayer, ...]


_INDEX = TypeAdapter(_Index)


@dataclass(frozen=True)
class Store:
    """The layers of a model on the disk.

    Attributes:
        directory: where they are kept.
        layers: in the order of the model; one without quantised weights is empty.
    """

    directory: Path
    layers: tuple[StoredLayer, ...]

    @property
    def file(self) -> Path:
        """Of the bytes."""
        return self.directory / BYTES

    @property
    def nbytes(self) -> int:
        """Of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def largest(self) -> int:
        """Bytes of the largest layer."""
        return max(layer.nbytes for layer in self.layers)

    @classmethod
    def open(cls, directory: Path) -> "Store":
        """What ``stored`` left.

        Raises:
            ModelError: it is damaged, or was written under another name.
        """
        hint = f"remove {directory}; it is made again from the checkpoint"
        try:
            index = _INDEX.validate_json((directory / INDEX).read_bytes())
            found = (directory / BYTES).stat().st_size
        except (OSError, ValidationError) as error:
            raise ModelError(f"{directory}: the stored layers cannot be read: {error}", hint) from error
        if index.key != directory.name:
            raise ModelError(f"{directory}: holds the layers of {index.key}, which are another model's", hint)
        store = cls(directory, index.layers)
        if found != store.nbytes:
            raise ModelError(f"{store.file}: {found:,} bytes, expected {store.nbytes:,}", hint)
        return store

    def check(self, number: int, layer_b: Tensor) -> None:
        """Compare the bytes of a layer, which lie in the memory of the host, with its checksum.

        Raises:
            ModelError: the file has changed.
        """
        found = zlib.crc32(layer_b.numpy().data)
        if found != self.layers[number].checksum:
            raise ModelError(
                f"{self.file}: layer {number} has the checksum {found:08x}, expected {self.layers[number].checksum:08x}",
                f"the disk or its memory is failing; remove {self.directory}, it is made again from the checkpoint",
            )


Weights = list[tuple[str, NF4, torch.dtype]]
"""Names, parts and dtypes of a layer's weights."""


def stored(directory: Path, expected: int, layers: Iterable[Weights]) -> Store:
    """The store in a directory, written first where it is not there yet.

    Args:
        directory: of this store alone.
        expected: bytes of all layers (``memory/disk.py``), for the room on the disk.
        layers: one after the other, asked for when they are written; not at all where the store is there.

    Raises:
        ModelError: damaged, or no room on the disk.
        RunError: the disk is full.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("wb") as lock:
        wait_for_lock(lock.fileno())  # whoever comes second waits, and finds it done
        if not directory.exists():
            if (free := free_bytes(directory.parent)) < expected:
                raise ModelError(
                    f"{directory.parent}: {gb(free)} are free, but the layers to stream take {gb(expected)}",
                    "make room, set XDG_CACHE_HOME to a larger disk, or train.resident_layers: all",
                )
            logger.info(f"streaming: quantising {gb(expected)} of layers to {directory}, once")
            with full_disk_named(directory, "storing the layers"), atomic_directory(directory) as temporary:
                _write(temporary, directory.name, layers)
    return Store.open(directory)


def _write(directory: Path, key: str, layers: Iterable[Weights]) -> None:
    entries, start = [], 0
    with (directory / BYTES).open("wb") as file:
        for weights in layers:
            layer_b, places = _laid_out(weights)
            data = layer_b.numpy().data
            file.write(data)
            entries.append(StoredLayer(start=start, nbytes=len(data), checksum=zlib.crc32(data), weights=places))
            start += len(data)
    (directory / INDEX).write_bytes(_INDEX.dump_json(_Index(key=key, layers=tuple(entries))))


def _laid_out(weights: Weights) -> tuple[Tensor, tuple[StoredWeight, ...]]:
    """The bytes of a layer, and where its weights lie in them."""
    places, runs, end = [], [], 0
    for name, q, dtype in weights:
        parts = [part.to("cpu").contiguous().view(torch.uint8) for part in (q.packed, q.absmax, q.nested_absmax)]
        if not torch.equal(q.nested_map, dynamic_map(q.nested_map.device)):
            raise ModelError(
                f"{name}: absmax codes by another table than bitsandbytes' own", "train.resident_layers: all keeps the table"
            )
        starts = []
        for part in parts:
            starts.append(end)
            runs.append((end, part))
            end += -(-len(part) // PART) * PART
        dtype_name = str(dtype).removeprefix("torch.")
        first, second, third = starts
        places.append(StoredWeight(name=name, shape=q.shape, dtype=dtype_name, mean=q.offset, starts=(first, second, third)))
    layer_b = torch.zeros(-(-end // SECTOR) * SECTOR, dtype=torch.uint8)
    for start, part in runs:
        layer_b[start : start + len(part)] = part
    return layer_b, tuple(places)
