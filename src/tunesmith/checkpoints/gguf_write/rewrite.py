"""A GGUF file written again with another chat template, and other blocks in some tensors; all else byte by byte as it was."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import ALIGNMENT, header
from tunesmith.checkpoints.gguf_write.types import Source
from tunesmith.errors import ExportError

TEMPLATE = "tokenizer.chat_template"
Blocks = Callable[[], NDArray[np.uint8]]


def rewrite_gguf(source: Path, target: Path, template: str, replaced: Mapping[str, Blocks] | None = None) -> None:
    """Write a file again.

    Args:
        source: whole and in order.
        target: written whole or not at all.
        template: Jinja text.
        replaced: what makes the blocks of some tensors, of the type and shape that they have, by the name in the file.

    Raises:
        ExportError: blocks of another size, or the file was cut meanwhile.
    """
    reader, left = GgufReader(source), dict(replaced or {})
    tensors = sorted(reader.tensors, key=lambda tensor: tensor.data_offset)
    sources = {tensor.name: Source(tensor.name, tensor.shape, tensor.tensor_type) for tensor in tensors}
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with source.open("rb") as old, temporary.open("wb") as new:
            new.write(header(reader, sources, {name: each.kind for name, each in sources.items()}, {TEMPLATE: template}))
            for tensor in tensors:
                if (make := left.pop(tensor.name, None)) is None:
                    old.seek(tensor.data_offset)
                    _copy(old, new, tensor.n_bytes, source)
                else:
                    blocks = make()
                    if blocks.nbytes != tensor.n_bytes:
                        raise ExportError(
                            f"{source}: {tensor.name} has {tensor.n_bytes} bytes there, and {blocks.nbytes} in its place",
                            "train again on the file that is there",
                        )
                    new.write(np.ascontiguousarray(blocks).data)
                new.write(bytes(-new.tell() % ALIGNMENT))
        assert not left, f"{source} has no {next(iter(left))}"
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(old: BinaryIO, new: BinaryIO, nbytes: int, source: Path) -> None:
    while nbytes:
        if not (piece := old.read(min(nbytes, 2**24))):
            raise ExportError(f"{source}: was cut while it was copied", "get it again")
        new.write(piece)
        nbytes -= len(piece)
