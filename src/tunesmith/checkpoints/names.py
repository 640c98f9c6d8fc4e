"""What a tensor is called in a checkpoint, and what in the text model that is trained.

A multimodal checkpoint holds a text model and towers. Its text tensors lie under a prefix that the text model does not have,
``model.language_model.`` since transformers 4.52 and ``language_model.model.`` before; a text model that was loaded through
such a mapping is saved with the prefix again. So the layout is told from the names in the files, not from the configuration.
A loader that skips this step finds no tensor, and stock transformers then returns random weights with a report in the log.

A checkpoint of a mixture may hold each expert's projections apart where the model has one stacked weight; ``expert_part``
says where such a tensor lies in the stack.

Refused: handing the loader's own mapping to others as regular expressions. The loader, the merge and the tests need both
directions, and pairs of prefixes are the whole of it.

Cost: the headers of the files, a few milliseconds.

Source: ``conversion_mapping.py`` of transformers 5.23 (the entries ``llava`` and ``LlavaModel``, and those with
``MergeModulelist``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiter

from tunesmith.checkpoints.prescan import StoredTensor, read_header
from tunesmith.errors import ModelError
from tunesmith.families import WRAPPERS

Pairs = tuple[tuple[str, str], ...]
PLAIN: Pairs = ()
LAYOUTS: tuple[Pairs, ...] = (  # the first pair tells the layout
    (("model.language_model.", "model."),),
    (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")),
)
INDEX = "model.safetensors.index.json"
LAYERS, LARGEST = 10_000, 2**63  # several times what any model has; of other numbers
CONFIG_BYTES = 2**22
INDEX_BYTES = 2**26  # 100,000 tensors take 10 MB
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_STACKS = {"gate_proj": ("gate_up_proj", 0, 2), "up_proj": ("gate_up_proj", 1, 2), "down_proj": ("down_proj", 0, 1)}


@dataclass(frozen=True)
class Naming:
    """The names of one checkpoint against those of its text model.

    Attributes:
        pairs: (beginning of a name in the checkpoint, beginning of it in the model); other names are the same in both.
        towers: beginnings of the names of what is not the text model, after ``model.``.
    """

    pairs: Pairs = PLAIN
    towers: tuple[str, ...] = ()

    def of_model(self, checkpoint_name: str) -> str | None:
        """The model's name of a tensor of the checkpoint; None where it belongs to a tower.

        A name that fits nothing comes back as it is: no tensor of the model has it, so the caller can say so.
        """
        if self.towers and checkpoint_name.removeprefix("model.").startswith(self.towers):
            return None
        for ours, theirs in self.pairs:
            if checkpoint_name.startswith(ours):
                return theirs + checkpoint_name[len(ours) :]
        return checkpoint_name

    def of_checkpoint(self, model_name: str) -> str:
        """The checkpoint's name of a tensor of the model."""
        for ours, theirs in self.pairs:
            if model_name.startswith(theirs):
                return ours + model_name[len(theirs) :]
        return model_name


@dataclass(frozen=True)
class ExpertPart:
    """Where the weight of one projection of one expert lies in a stacked weight of shape (E, rows, columns).

    Attributes:
        stacked: the model's name of the stacked weight.
        expert: index into E.
        part: which equal share of the rows it fills: 0 of 2 (gate), 1 of 2 (up), 0 of 1 (down).
        parts: the number of shares.
    """

    stacked: str
    expert: int
    part: int
    parts: int


def read_settings(directory: Path) -> dict[str, Any]:
    """The object that ``config.json`` of a model directory holds.

    Raises:
        ModelError: not there, too large, or no JSON object.
    """
    path = directory / "config.json"
    try:
        settings = jiter.from_json(path.read_bytes()) if path.stat().st_size <= CONFIG_BYTES else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the configuration cannot be read: {error}", "is config.json there?") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: no JSON object of at most {CONFIG_BYTES:,} bytes", "get the file again")
    for sizes in (settings, settings.get("text_config")):
        for key, size in sizes.items() if isinstance(sizes, dict) else ():
            most = LAYERS if key == "num_hidden_layers" else LARGEST
            if isinstance(size, int) and abs(size) > most:
                shown = f"{size:,}" if abs(size) < 2 * LARGEST else f"a number of {size.bit_length():,} bits"
                raise ModelError(f"{path}: {key} is {shown}, {most:,} is the limit", "get the file again")
    return settings


def naming(directory: Path) -> Naming:
    """The naming of the checkpoint in a model directory.

    Raises:
        ModelError: no configuration or no safetensors there, or they cannot be read.
    """
    return naming_of(str(read_settings(directory).get("model_type")), checkpoint_files(directory))


def naming_of(model_type: str, names: Iterable[str]) -> Naming:
    """The naming of a checkpoint with this ``model_type`` in its configuration and these names in its files."""
    wrapper = WRAPPERS.get(model_type)
    towers = wrapper.towers if wrapper else ()
    names = list(names)
    for pairs in LAYOUTS:
        if any(name.startswith(pairs[0][0]) for name in names):
            return Naming(pairs, towers)
    return Naming(PLAIN, towers)


def checkpoint_files(directory: Path) -> dict[str, Path]:
    """The safetensors file of each tensor of a checkpoint, by the tensor's name in it.

    Raises:
        ModelError: no ``model.safetensors`` there, nor its index, or a damaged or forged one.
    """
    return {name: file for file, tensors in stored_tensors(directory).items() for name in tensors}


def stored_tensors(directory: Path) -> dict[Path, dict[str, StoredTensor]]:
    """What the headers of a checkpoint's files say of each tensor, by file; the weights are not read.

    Raises:
        ModelError: no ``model.safetensors`` there, nor its index; a file of the index is not there; or a damaged or forged one.
    """
    index, single = directory / INDEX, directory / "model.safetensors"
    if not index.exists() and not single.exists():
        raise ModelError(f"{directory}: no model.safetensors there, nor its index", "get the checkpoint as safetensors")
    try:
        files = sorted(directory / file for file in _files_of(index)) if index.exists() else [single]
        if missing := [file.name for file in files if not file.exists()]:
            gone = f"{len(missing)} of the {len(files)} files that {INDEX} names are not there: {', '.join(missing[:4])}"
            raise ModelError(f"{directory}: {gone}", "the download was not finished; get the checkpoint again")
        return {file: read_header(file) for file in files}
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}: the checkpoint cannot be read: {error}", "get the checkpoint again") from error


def expert_part(name: str) -> ExpertPart | None:
    """The place of ``...experts.7.gate_proj.weight`` in its stack; None for any other name (of the model, not of the file)."""
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    stack, part, parts = _STACKS[match[3]]
    return ExpertPart(f"{match[1]}.{stack}", int(match[2]), part, parts)


def _files_of(index: Path) -> set[str]:
    """The files that an index names, all of them beside it."""
    if index.stat().st_size > INDEX_BYTES:
        raise ModelError(f"{index}: larger than {INDEX_BYTES:,} bytes", "get the checkpoint again")
    facts = jiter.from_json(index.read_bytes())
    places = facts.get("weight_map") if isinstance(facts, dict) else None
    if not isinstance(places, dict):
        raise ModelError(f"{index}: no weight_map there", "get the checkpoint again")
    files = set(map(str, places.values()))
    if outside := sorted(file for file in files if Path(file).name != file):
        raise ModelError(f"{index}: {outside[0]!r} is not a file beside it", "get the checkpoint from a source that you trust")
    return files
