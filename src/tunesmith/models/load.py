"""Load a base model from its directory of safetensors (``checkpoints/resolve.py`` finds it).

Training is on text: of a multimodal checkpoint the text model alone is built, from its part of the configuration, and the
towers are not read (``checkpoints/hf.py``). Refused: transformers' automatic class, which builds the towers too, and its
text class, which finds none of its names in such a checkpoint and goes on with random weights.

Nothing is substituted: the model that is named is loaded, or it is an error. No remote code, no pickle.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tunesmith import hardware
from tunesmith.bits.mixed import MixedBase
from tunesmith.checkpoints.hf import Checkpoint, read_config
from tunesmith.errors import ModelError, damage_named
from tunesmith.kernels.cross_entropy import TrainedRows
from tunesmith.kernels.sliced import SlicedHead
from tunesmith.layers.int8 import Int8Head
from tunesmith.layers.new_rows import RowsHead
from tunesmith.layers.whole_table import TableHead
from tunesmith.models.embeddings import hold_table, per_layer_table, place_of, stock_table
from tunesmith.models.fp16_compute import keep_residual_in_fp32
from tunesmith.models.nf4_load import load_nf4, shorten
from tunesmith.models.placement import EVERYTHING_HERE, Placement
from tunesmith.models.streaming import refuse_streaming
from tunesmith.models.tables import place_tables

logger = logging.getLogger(__name__)

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
_PREFIXED = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory.

    Raises:
        ModelError: none there, or damaged.
    """
    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{directory}: no tokenizer there",
            "copy tokenizer.json and tokenizer_config.json from the model that it was made of",
        )
    _refuse_cut_characters(directory / "tokenizer.json")
    with damage_named(ModelError, f"{directory}: the tokenizer cannot be loaded", "get its tokenizer.json again"):
        return AutoTokenizer.from_pretrained(directory)


def _refuse_cut_characters(path: Path) -> None:
    """Refuse merges that the tokenizers library would cut within a character: it ends the process then, without an error."""
    raw = path.read_bytes() if path.is_file() else b""
    if _PREFIXED.search(raw) is None:
        return
    with damage_named(ModelError, f"{path}: the tokenizer cannot be loaded", "get it again"):
        model = json.loads(raw)["model"]
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or ())
        bad = next((pair for pair in pairs if not pair[1].startswith(model["continuing_subword_prefix"])), None)
    if bad is not None:
        raise ModelError(f"{path}: the merge {bad!r} does not go on with continuing_subword_prefix", "get it again")


def load_model(
    directory: Path,
    dtype: str,
    base: str | None = None,
    device: torch.device | str = "cpu",
    placement: Placement = EVERYTHING_HERE,
    *,
    gguf: Path | None = None,
    mixed: MixedBase | None = None,
) -> PreTrainedModel:
    """A stock causal language model, frozen, with packed attention at hand.

    Args:
        directory: Hugging Face model directory with safetensors; of a multimodal one the text model is read.
        dtype: ``fp32``, ``bf16``, or ``fp16`` with everything but the large weights in fp32 (``models/fp16_compute.py``).
        base: ``nf4`` to quantise linear layers and experts as they are read, a llama.cpp type to keep the linear layers in
            ``gguf``'s blocks; else they are kept in ``dtype``.
        device: where the model is made.
        placement: which parts of it lie elsewhere.
        gguf: the file whose blocks the linear layers are kept in, where ``base`` names them.
        mixed: which linear layers of ``nf4`` get more bits; None for none.

    Raises:
        ModelError: no safetensors, unknown architecture, damaged file, a weight that is not in the checkpoint, a quantisation
            that is not read, layers to stream or to share out that are not in NF4.
    """
    hardware.keep_fewer_kernels()
    hardware.ask_for_deterministic_cublas()
    device = torch.device(device)
    refuse_streaming(base or dtype, placement, mixed is not None)
    if base == "nf4" or gguf is not None:
        model = load_nf4(directory, DTYPES[dtype], device, placement, gguf=gguf, mixed=mixed)
    else:
        model = _load_dense(directory, DTYPES[dtype], device, placement)
    if dtype == "fp16":
        keep_residual_in_fp32(model)
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Within the block the model uses another attention function of ours; afterwards its own again."""
    before = model.config._attn_implementation or "sdpa"
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a causal language model that turns ids into the last hidden states (everything but the head)."""
    return model.base_model


def head_of(model: PreTrainedModel) -> torch.nn.Linear | Int8Head:
    """The frozen layer that turns hidden states into logits; rows of new tokens stand beside it (``head_new_rows``).

    Raises:
        ModelError: the model has none, or one that is no linear layer.
    """
    head = model.get_output_embeddings()
    if isinstance(head, RowsHead):
        head = head.base
    if not isinstance(head, torch.nn.Linear | Int8Head):
        raise ModelError(
            f"{model.config.model_type}: the output head is {type(head).__name__}, expected a linear layer",
            "the loss is computed from its weight; docs/reference/families.md lists the models that can be trained",
        )
    return head


def head_weight(model: PreTrainedModel) -> torch.Tensor:
    """Output embedding, shape (V, D); of a head in 8 bits its codes, for shape and place.

    Raises:
        ModelError: see ``head_of``.
    """
    return head_of(model).weight


def head_rows(model: PreTrainedModel) -> torch.Tensor | SlicedHead:
    """What ``linear_cross_entropy`` takes as the head.

    Raises:
        ModelError: see ``head_of``.
    """
    trained = model.get_output_embeddings()
    if isinstance(trained, TableHead) and trained.rows.is_on:
        return trained.sliced()
    head = head_of(model)
    return head.table if isinstance(head, Int8Head) else head.weight


def head_new_rows(model: PreTrainedModel) -> TrainedRows | None:
    """What ``linear_cross_entropy`` takes as trained rows (of new tokens, or all); None where none are, or they are off."""
    head = model.get_output_embeddings()
    if not isinstance(head, RowsHead) or not head.rows.is_on:
        return None
    return TrainedRows(head.rows.first, head.rows.rows)


def _load_dense(directory: Path, dtype: torch.dtype, device: torch.device, placement: Placement) -> PreTrainedModel:
    """By ``from_pretrained``, which knows the stored form of every architecture; what it would make up is refused."""
    config, quantization = read_config(directory)
    if quantization is not None:
        return load_nf4(directory, dtype, device, placement, quantize=False)
    checkpoint = Checkpoint(directory)
    names = checkpoint.naming
    table = per_layer_table(str(config.model_type), checkpoint.files)
    place = place_of(placement.per_layer_embeddings, table, device)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            key_mapping={f"^{re.escape(theirs)}": ours for theirs, ours in names.pairs} or None,
            device_map=None if device.type == "cpu" or place != "model" or placement.moves_tables else device,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{directory}: the model cannot be loaded: {error}", "are the safetensors complete?") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{directory}: {len(missing)} weights are not in the checkpoint: {shorten(missing)}",
            "they would be random numbers; get the whole checkpoint, and one whose names are those of this architecture",
        )
    if unexpected := sorted(name for name in info["unexpected_keys"] if names.of_model(name) is not None):
        logger.warning(f"{len(unexpected)} tensors of the checkpoint have no place in the model ({shorten(unexpected)})")
    if table is not None and place != "model":
        dense = stock_table(model, table).weight.detach()
        hold_table(model, table, checkpoint.read(f"{table}.weight") if place == "nf4" else dense, dtype, place)
    place_tables(model, lambda name: model.get_parameter(name).detach(), dtype, device, placement)
    return model.to(device)
