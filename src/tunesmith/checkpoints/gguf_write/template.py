"""A GGUF file with another chat template; every tensor byte by byte as it was."""

import shutil
from pathlib import Path

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import header
from tunesmith.checkpoints.gguf_write.types import Source

TEMPLATE = "tokenizer.chat_template"


def with_template(source: Path, target: Path, template: str) -> None:
    """Copy a file and write another template into it.

    Args:
        source: whole and in order.
        target: written whole or not at all.
        template: Jinja text.
    """
    reader = GgufReader(source)
    first = min(tensor.data_offset for tensor in reader.tensors)
    tensors = sorted(reader.tensors, key=lambda tensor: tensor.data_offset)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with source.open("rb") as old, temporary.open("wb") as new:
            sources = {tensor.name: Source(tensor.name, tensor.shape, tensor.tensor_type) for tensor in tensors}
            new.write(header(reader, sources, {name: each.kind for name, each in sources.items()}, {TEMPLATE: template}))
            old.seek(first)
            shutil.copyfileobj(old, new, 2**24)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
