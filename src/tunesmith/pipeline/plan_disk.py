"""What an export would write of a model that may not be there yet, for ``plan``: from the sizes in its ``config.json``."""

from pathlib import Path

from tunesmith.errors import ExportError
from tunesmith.export.sizes import (
    FULL,
    INFO,
    TOKEN,
    TOKEN_FILES,
    companion_bytes,
    gguf_bytes,
    header_bytes,
    metadata_of,
    sources_of,
    vocabulary_bytes,
)
from tunesmith.memory.disk import adapted_layers, dense_bytes, width_of
from tunesmith.memory.shape import Shape
from tunesmith.recipe.run import Export, plain_type
from tunesmith.rundir.records import Json

TEMPORARY = "temporary F16.gguf"


def export_files(export: Export, shape: Shape, config: Json, directory: Path, r: int) -> dict[str, int]:
    """Bytes of each file or directory, the text model's alone; a type that its widths do not take is left out.

    Args:
        export: of a recipe.
        config: of the model.
        directory: of that; its tokenizer is counted where it is there.
        r: of the adapter.
    """
    has_tokenizer = (directory / "tokenizer.json").is_file()
    beside = companion_bytes(directory) if has_tokenizer else TOKEN_FILES * shape.vocab
    tensors = sources_of(shape)
    header = header_bytes(len(tensors), vocabulary_bytes(directory) if has_tokenizer else TOKEN * shape.vocab)
    part = config.get("text_config")
    metadata = metadata_of(shape, str((part if isinstance(part, dict) else config).get("model_type")))
    files = {"merged": dense_bytes(shape, width_of(config)) + beside}
    for kind in export.gguf:
        try:
            files[f"{kind}.gguf"] = gguf_bytes(tensors, metadata, header, kind, export.imatrix)
        except ExportError:
            continue
    if "F16" not in export.gguf and set(export.gguf) - set(FULL):
        files[TEMPORARY] = gguf_bytes(tensors, metadata, header, "F16")
    if export.lora_gguf:
        deployed = plain_type(export.gguf[-1])
        adapter = 4 * r * shape.adapter_per_rank + 2 * INFO * adapted_layers(shape)
        files |= {"adapter.gguf": adapter, f"base-{deployed}.gguf": files.get(f"{export.gguf[-1]}.gguf", 0)}
    return files
