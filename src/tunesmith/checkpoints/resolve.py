"""Which directory a recipe's model is.

A hub id, a directory and a ``.gguf`` file all become a Hugging Face directory of safetensors. A GGUF is dequantised once and
the result is kept in the cache (``checkpoints/gguf.py``); the second run starts from there (1 s instead of 25). A hub id is
looked up once a process, so that all stages of a run meet one commit.

What is on the disk already, and what its files say, is told without torch by ``checkpoints/content.py`` and ``facts.py``.
"""

import functools
from pathlib import Path

from huggingface_hub import DryRunFileInfo, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from tunesmith import hardware
from tunesmith.checkpoints.content import hub_snapshot, model_directory
from tunesmith.checkpoints.gguf import convert_gguf
from tunesmith.errors import ModelError, first_line
from tunesmith.formatting import gb
from tunesmith.rundir import free_bytes


def find_model(model: str, revision: str | None = None, sha256: str | None = None) -> Path:
    """The local directory of a model, converted or downloaded when need be.

    Args:
        model: hub id, directory or ``.gguf`` file.
        revision: commit of a hub id.
        sha256: expected hash of a ``.gguf`` file.

    Raises:
        ModelError: nothing there, a damaged file, another hash, or no way to the hub.
    """
    path = Path(model)
    if model.endswith(".gguf"):
        return convert_gguf(path, sha256)
    if sha256 is not None:
        raise ModelError(f"{model}: model_sha256 is for .gguf files", "use revision for a hub id")
    if path.is_absolute():
        return model_directory(path)
    return _download(model, revision)


@functools.cache
def _download(model: str, revision: str | None) -> Path:
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model"]
    try:
        if not any(hub_snapshot(model, revision).glob("*.safetensors")):
            _refuse_full_disk(model, snapshot_download(model, revision=revision, allow_patterns=patterns, dry_run=True))
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{model}: no such file or directory, and the hub does not have it either: {reason}",
            "check the spelling; a local path starts with ./ or / or ends in .gguf",
        ) from error


def _refuse_full_disk(model: str, files: list[DryRunFileInfo]) -> None:
    """Refuse to fetch a model that has no room.

    Args:
        files: as the hub says them.

    Raises:
        ModelError: there is less room in the hub's cache than what is missing takes.
    """
    cache = hardware.hub_cache()
    needed, free = sum(file.file_size or 0 for file in files if file.will_download), free_bytes(cache)
    if needed > free:
        raise ModelError(
            f"{model}: {gb(needed)} are to be fetched, and {gb(free)} are free in {cache}; nothing was fetched",
            "make room, or set HF_HOME to a larger disk",
        )
