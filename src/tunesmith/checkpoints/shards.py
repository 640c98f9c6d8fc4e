"""Safetensors files written a piece of a tensor at a time, so that a model needs no memory to be written.

The layout is eight bytes for the length of a header, the header as JSON (name, dtype, shape and place of every tensor), and
the tensors one after another. All of that is known before the first weight is computed: the header is written first, then
each tensor's rows as they come. ``safetensors.torch.save_file`` was refused, because it holds every tensor of a file at once:
5 GB for a shard of the usual size.

A model that is larger than one shard gets ``model-00001-of-0000N.safetensors`` and ``model.safetensors.index.json``, as
``save_pretrained`` writes them.

Source: the format's description in the ``safetensors`` repository, README, section "Format".
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal

from tunesmith.errors import ExportError
from tunesmith.rundir import write_json

SHARD_BYTES = 5_000_000_000  # as save_pretrained cuts
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Shape:
    """What the header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(tensors: Mapping[str, Shape], limit: int = SHARD_BYTES) -> dict[str, list[str]]:
    """File name -> names of its tensors, in their order. A pure function.

    Args:
        limit: bytes of a file, unless one tensor alone is larger.
    """
    groups: list[list[str]] = []
    size = 0
    for name, tensor in tensors.items():
        if not groups or size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) <= 1:
        return {"model.safetensors": list(tensors)}
    return {f"model-{n:05}-of-{len(groups):05}.safetensors": group for n, group in enumerate(groups, start=1)}


def refuse_full_disk(directory: Path, nbytes: int) -> None:
    """Check the room before anything is written.

    Args:
        directory: an existing directory on the file system that is written to.

    Raises:
        ExportError: less than ``nbytes`` are free there.
    """
    free = shutil.disk_usage(directory).free
    if nbytes > free:
        raise ExportError(
            f"{directory}: the model takes {decimal(nbytes)}, {decimal(free)} are free",
            "make room, or start the run in a directory on a larger disk",
        )


def write_model(
    directory: Path,
    tensors: Mapping[str, Shape],
    pieces: Callable[[str], Iterable[torch.Tensor]],
    limit: int = SHARD_BYTES,
) -> None:
    """Write all weights of a model directory, with the index where there are several files.

    Args:
        directory: an existing directory.
        tensors: what is written, in this order.
        pieces: the values of a tensor by its name: consecutive pieces of the flat tensor, on the CPU, in its dtype.
        limit: see ``plan_shards``.
    """
    shards = plan_shards(tensors, limit)
    for file, names in shards.items():
        _write_file(directory / file, {name: tensors[name] for name in names}, pieces)
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _write_file(path: Path, tensors: Mapping[str, Shape], pieces: Callable[[str], Iterable[torch.Tensor]]) -> None:
    # Wider elements first, as safetensors does, so that each tensor begins at a multiple of its element.
    ordered = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in ordered:
        tensor = tensors[name]
        ends = [place, place + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        place = ends[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in ordered:
            nbytes = 0
            for piece in pieces(name):
                assert piece.dtype == tensors[name].dtype, f"{name}: {piece.dtype}"
                nbytes += file.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert nbytes == tensors[name].nbytes, f"{name}: {nbytes} bytes"
