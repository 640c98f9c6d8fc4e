"""The configuration and the tensors of the text model in a model directory.

A quantised checkpoint is read as the dense one that it amounts to: names and shapes are those of the dense weights, and each is
dequantised when it is read (``checkpoints/quantized``).

Both loaders start here. The configuration is that of the text model, whether the checkpoint is a text model or a multimodal
one around it; the tensors are read one at a time under the text model's names, and those of the towers are not seen. A file is
opened anew for each tensor, because pages of a mapping count as resident until it is closed.

A multimodal model whose text model is not known (``families.WRAPPERS``) is refused: transformers would load it with its
towers, and adapters would be put on them.

Refused: ``from_pretrained`` for this, which reads whole files and falls back to random weights.

Source: the ``text_config`` of transformers' multimodal configurations; ``checkpoints/names.py`` for the names.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from tunesmith.checkpoints.names import INDEX, checkpoint_files, expert_part, naming
from tunesmith.checkpoints.quantized.dense import dense_weight
from tunesmith.checkpoints.quantized.layout import layout_of
from tunesmith.errors import ModelError, damage_named
from tunesmith.families import WRAPPERS

logger = logging.getLogger(__name__)

HEADS = ("lm_head.weight", "language_model.lm_head.weight", "embed_out.weight")
TABLES = ("embed_tokens.weight", ".wte.weight", "embed_in.weight", "word_embeddings.weight")


def read_config(directory: Path) -> tuple[PretrainedConfig, dict[str, Any] | None]:
    """Configuration of the text model, and what the checkpoint's says of a quantisation (None for nothing).

    Raises:
        ModelError: no configuration there, an unknown architecture, or a multimodal one that is not known.
    """
    with damage_named(ModelError, f"{directory}: the configuration cannot be read", "is config.json there?"):
        config: Any = AutoConfig.from_pretrained(directory)
    facts = config.to_dict().get("quantization_config")
    text = config.get_text_config()
    if config.tie_word_embeddings and has_own_head(directory):
        config.tie_word_embeddings = text.tie_word_embeddings = False
    if text is config:
        if facts is not None:
            del config.quantization_config  # what is made of it is no longer quantised in that way
        return config, facts
    if config.model_type not in WRAPPERS:
        raise ModelError(
            f"{directory}: a multimodal model of type {config.model_type}, whose text model is not known here",
            f"known: {', '.join(WRAPPERS)}; or extract its text model with transformers and give that directory",
        )
    text.tie_word_embeddings = config.tie_word_embeddings  # of a multimodal model the outer one decides
    return text, facts


def has_own_head(directory: Path) -> bool:
    """Whether a head lies in the files that is another matrix than the embedding, whatever the configuration says of it.

    Some published models have one under ``tie_word_embeddings: true``. The files are the model: readers that obey the flag
    would leave the head out.
    """
    if not any((directory / name).exists() for name in (INDEX, "model.safetensors")):
        return False
    files = checkpoint_files(directory)
    heads = [name for name in files if name in HEADS]
    tables = [name for name in files if name.endswith(TABLES)]
    if len(heads) != 1 or len(tables) != 1:
        return False
    head, table = (_read(files[name], name) for name in (heads[0], tables[0]))
    return not torch.equal(head, table)


class Checkpoint:
    """The safetensors of a model directory, read one tensor at a time under the text model's names.

    Attributes:
        naming: the names in the files against those of the model; what belongs to a tower is left out, and that is said.
        files: file of each tensor and its name there, by the model's name.
        layout: of a quantised checkpoint, how its weights lie.
        stacks: names of the parts of each stacked expert weight that is stored in parts, in the order of its flat run.
    """

    def __init__(self, directory: Path, *, dense: bool = True):
        """Read the headers.

        Args:
            dense: also of a checkpoint whose NF4 is what NF4 is here; else its tensors are read as they lie there.

        Raises:
            ModelError: no safetensors or no configuration there, a damaged one, or a quantisation that is not read.
        """
        self.directory = directory
        self.layout = layout_of(directory, dense=dense)
        stored_names = self.layout.files
        self.naming = naming(directory)
        self.files: dict[str, tuple[Path, str]] = {}
        towers = 0
        places: dict[str, list[tuple[int, int, str]]] = {}
        for stored, file in stored_names.items():
            name = self.naming.of_model(stored)
            if name is None:
                towers += 1
                continue
            self.files[name] = (file, stored)
            if part := expert_part(name):
                places.setdefault(part.stacked, []).append((part.expert, part.part, name))
        if towers:
            logger.info(f"text only: {towers} tensors of the checkpoint's towers are not loaded")
        self.stacks = {stacked: [name for *_, name in sorted(parts)] for stacked, parts in places.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.stacks

    def read(self, name: str) -> Tensor:
        """A view of the mapped file, whose pages are given back when the tensor dies; of a quantised weight its dense numbers.

        Raises:
            ModelError: the tensor cannot be read.
        """
        file, stored = self.files[name]
        packed = self.layout.packed.get(stored)
        return _read(file, stored) if packed is None else dense_weight(packed)

    def read_parts(self, name: str, shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        """The tensor of this name, or the parts that it is stored in: names and views, one after another in its flat run.

        Args:
            shape: that the whole must have; (E, rows, columns) for a stack.

        Raises:
            ModelError: another shape, a part too few or too many, or one that cannot be read.
        """
        if name in self.files:
            tensor = self.read(name)
            check_shape(name, tensor.shape, shape)
            yield name, tensor
            return
        parts = self.stacks[name]
        share = len(parts) // shape[0]
        if share * shape[0] != len(parts) or shape[1] % max(share, 1):
            raise ModelError(
                f"{self.directory}: {len(parts)} tensors of {name}, which has {shape[0]} experts", "get the whole checkpoint"
            )
        for part in parts:
            tensor = self.read(part)
            check_shape(part, tensor.shape, (shape[1] // share, *shape[2:]))
            yield part, tensor


def _read(file: Path, stored: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(stored)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: {stored} cannot be read: {error}", "get the checkpoint again") from error


def check_shape(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Refuse a tensor of another shape than the model's.

    Raises:
        ModelError: another shape.
    """
    if tuple(shape) != tuple(expected):
        raise ModelError(f"{name}: shape {tuple(shape)}, expected {tuple(expected)}", "does config.json belong to the weights?")
