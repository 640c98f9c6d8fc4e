"""What tells a base model from all others: its content, read without torch and without the network.

A copy on another disk, a conversion made anew and a cache that was cleared are the same model; a file that was exchanged is
not. So the key is of the bytes (``rundir/hashes.py`` keeps those of large files), and of a hub id its commit, which names
them.

Refused: sizes and times, which change whenever somebody copies a model, and then hours of training are made again.
"""

from pathlib import Path

from tunesmith import hardware
from tunesmith.errors import ModelError
from tunesmith.rundir.atomic import fingerprint
from tunesmith.rundir.hashes import content_hash

READ = (".safetensors", ".json", ".jinja", ".model")  # suffixes of the files that a model is loaded from


def content_key(model: str, revision: str | None = None) -> str:
    """Fingerprint of the model that a recipe names.

    Args:
        model: hub id, absolute directory, or ``.gguf`` file.
        revision: commit or branch of a hub id.

    Raises:
        ModelError: it is not on this machine.
    """
    path = Path(model)
    if path.is_file():
        return content_hash(path)
    if not path.is_absolute():
        path = hub_snapshot(model, revision)
    if not path.is_dir():
        raise ModelError(f"{model}: is not on this machine", "the verb that needs its weights gets it")
    files = sorted(file for file in path.iterdir() if file.suffix in READ and file.is_file())
    return fingerprint([(file.name, content_hash(file)) for file in files])


def model_at_hand(model: str, revision: str | None = None) -> Path | str:
    """The directory of a model where it is on the disk already, or why it is not.

    Args:
        model: hub id, absolute directory, or ``.gguf`` file.
        revision: commit or branch of a hub id.

    Raises:
        ModelError: a file or directory that is not there.
    """
    path = Path(model)
    if model.endswith(".gguf"):
        directory = hardware.converted_model(content_hash(gguf_file(path)))
        return directory if (directory / "config.json").exists() else f"{path.name} has not been converted yet"
    if path.is_absolute():
        return model_directory(path)
    snapshot = hub_snapshot(model, revision)
    return snapshot if (snapshot / "config.json").exists() else f"{model} has not been fetched yet"


def gguf_file(path: Path) -> Path:
    """The file itself, where it is there.

    Raises:
        ModelError: no such file.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such model file", "check the path; in a recipe it is relative to the recipe's file")
    return path


def model_directory(path: Path) -> Path:
    """The directory itself, where it is one of a model.

    Raises:
        ModelError: nothing there, or no ``config.json`` in it.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: no such model", "give a directory with config.json, a .gguf file or a hub id")
    if not (path / "config.json").exists():
        raise ModelError(f"{path}: no config.json there", "give the directory that save_pretrained wrote")
    return path


def hub_snapshot(model: str, revision: str | None) -> Path:
    """Where the hub's client keeps a commit, by its documented layout (huggingface_hub, "Understand caching")."""
    folder = hardware.hub_cache() / f"models--{model.replace('/', '--')}"
    name = revision or "main"
    reference = folder / "refs" / name
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else name
    return folder / "snapshots" / commit
