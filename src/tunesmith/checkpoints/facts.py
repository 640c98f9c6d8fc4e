"""What the files of a base model say before anything is loaded: configuration, headers, hashes.

``base_facts`` reads ``config.json`` and the headers of the safetensors, some milliseconds, and no weight. That is enough to
tell most models that cannot be trained from those that can (``checkpoints/check_base.py``), before a row is split.

Nothing here imports torch or transformers. Refused: ``AutoConfig``, which takes two seconds to import, and fills in defaults
that then look like facts of the file; what a file does not say is None here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.checkpoints.names import naming_of, read_settings, stored_tensors
from tunesmith.checkpoints.quantized.layout import layout_of
from tunesmith.checkpoints.quantized.schemes import Scheme, scheme_of, settings_of
from tunesmith.errors import ModelError, damage_named
from tunesmith.recipe.tables import table_of
from tunesmith.rundir import fingerprint, sha256_file

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # the keys of different architectures
_HEAD_BIAS = re.compile(r"(lm_head|embed_out)\.bias")


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """What the files of a base model say, without a weight being read. What they do not say is None.

    Attributes:
        directory: of the model.
        model_type: of the whole model.
        text_type: of its text model; the same where there is nothing but one.
        architectures: classes that the configuration names.
        encoder_decoder: whether it answers by another stack than the one that reads.
        max_positions: the longest row that it can take, in tokens.
        scheme: how the weights are quantised, or what it is that is not read; None where they are not.
        tied: whether the configuration says that the head is the embedding.
        own_head: whether a head lies in the files.
        tables: full names of the embedding and the head, as far as they lie there.
        head_bias: whether that head has a bias.
        weights: number of weights, those of towers included.
        nbytes: what they take, dequantised where they are quantised.
    """

    directory: Path
    model_type: str
    text_type: str
    architectures: tuple[str, ...]
    encoder_decoder: bool
    max_positions: int | None
    scheme: Scheme | str | None
    tied: bool | None
    own_head: bool
    tables: tuple[str, ...]
    head_bias: bool
    weights: int
    nbytes: int

    @property
    def multimodal(self) -> bool:
        """Whether there is a text model within another one."""
        return self.model_type != self.text_type


def model_hashes(directory: Path) -> dict[str, str]:
    """sha256 of every file of a model directory, for the manifest."""
    return {file.name: sha256_file(file) for file in sorted(directory.iterdir()) if file.is_file()}


def model_key(directory: Path) -> str:
    """Fingerprint of a model directory without reading its weights: small files by content, large ones by size and time."""
    entries = []
    for file in sorted(directory.iterdir()):
        if file.is_file():
            small = file.suffix in {".json", ".jinja"}
            entries.append((file.name, file.stat().st_size, sha256_file(file) if small else file.stat().st_mtime_ns))
    return fingerprint(entries)


def base_facts(directory: Path) -> BaseFacts:
    """What a model directory's configuration and headers say.

    Raises:
        ModelError: no configuration or no safetensors there, a file of the index is missing, or one cannot be read.
    """
    with damage_named(ModelError, f"{directory}: its configuration cannot be understood", "get its config.json again"):
        return _facts(directory)


def _facts(directory: Path) -> BaseFacts:
    config = read_settings(directory)
    text = config.get("text_config") or config
    quantization = settings_of(config)
    scheme = scheme_of(quantization)
    tensors = {name: tensor for file in stored_tensors(directory).values() for name, tensor in file.items()}
    model_type = str(config.get("model_type"))
    if isinstance(scheme, Scheme):
        tensors = layout_of(directory).tensors
    of_model = naming_of(model_type, tensors).of_model
    names = {name for stored in tensors if (name := of_model(stored)) is not None}
    positions = next((text[key] for key in POSITIONS if isinstance(text.get(key), int)), None)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return BaseFacts(
        directory=directory,
        model_type=model_type,
        text_type=str(text.get("model_type")),
        architectures=tuple(map(str, config.get("architectures") or ())),
        encoder_decoder=bool(config.get("is_encoder_decoder")),
        max_positions=positions,
        scheme=scheme,
        tied=tied if isinstance(tied, bool) else None,
        tables=tuple(sorted(module for name in names if table_of(module := name.removesuffix(".weight")) is not None)),
        own_head=not names.isdisjoint({"lm_head.weight", "embed_out.weight"}),
        head_bias=any(_HEAD_BIAS.fullmatch(name) for name in names),
        weights=sum(tensor.numel for tensor in tensors.values()),
        nbytes=sum(tensor.nbytes for tensor in tensors.values()),
    )
