"""A GGUF file as a Hugging Face directory, converted once, a tensor at a time.

A quantised file is dequantised to the very values that its blocks hold (fp32; 16-bit tensors stay as they are) and written
to safetensors in the cache, under the file's sha256. No model is built and no two tensors are held: the peak is the largest
tensor, of stacked experts the largest expert. What loads the directory afterwards may quantise it again tensor by tensor
(``models/nf4_load.py``), so an NF4 run from a GGUF never meets the dense model either. ``from_pretrained(gguf_file=...)``
was refused: it holds the dense model twice, parses the file three times, and ignores what it does not know.

What a file says beyond its tensors must be understood whole, or it is refused: an unknown key of its architecture, a tensor
without a place, a tensor of the model that the file lacks. transformers drops rotary scaling in silence (it is a tensor of
factors, from which the numbers of its rule are found again, and checked), and takes a head that is stored beside a tied
embedding for another matrix; both are mended here.

Names and layouts are transformers' own tables (``modeling_gguf_pytorch_utils.py``: ``get_gguf_hf_weights_map`` and the
``TensorProcessor`` of an architecture), blocks are read by llama.cpp's package ``gguf``. Which architectures are held by a
test stands in ``families.py``.

Shape suffixes here: F rotary frequencies.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from tunesmith import hardware
from tunesmith.checkpoints.content import gguf_file
from tunesmith.checkpoints.gguf_reader import GgufReader, GgufTensor
from tunesmith.checkpoints.gguf_tokenizer import load_gguf_tokenizer
from tunesmith.checkpoints.shards import Shape, refuse_full_disk, write_model
from tunesmith.checkpoints.tokenizer_class import name_tokenizer_class
from tunesmith.errors import ModelError
from tunesmith.families import GGUF, SCALED_ROTARY, GgufArchitecture
from tunesmith.rundir import atomic_directory
from tunesmith.rundir.hashes import content_hash

logger = logging.getLogger(__name__)

COMMON_KEYS = (
    "context_length",
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
)
SLOWEST, FASTEST = 1.0, 4.0  # low_freq_factor and high_freq_factor of every published model with scaled frequencies


@dataclass(frozen=True)
class GgufSource:
    """Where a tensor of the model is in the file: one tensor, or gate and up of stacked experts."""

    tensors: tuple[GgufTensor, ...]
    shape: Shape


def convert_gguf(path: Path, expected: str | None) -> Path:
    """The directory of a GGUF file's model in the cache, made when need be.

    Args:
        expected: sha256 that the file must have.

    Raises:
        ModelError: no such file, another hash, a file cut short, an architecture or a key that is not known, a tensor too
            many or too few, or no room for the directory.
    """
    digest = content_hash(gguf_file(path))
    if expected is not None and digest != expected:
        raise ModelError(f"{path}: sha256 is {digest}, the recipe expects {expected}", "get the file again")
    target = hardware.converted_model(digest)
    if target.exists():
        return target
    reader = open_gguf(path)
    known = _architecture(path, reader)
    logger.info(f"converting {path.name} to safetensors (once; kept in {target})")
    try:
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
        tokenizer = load_gguf_tokenizer(path, reader, config.model_type)
        _complete(path, config, reader, known)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        config.architectures = [type(model).__name__]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be read as a GGUF model: {error}", "get the file again") from error
    sources, processor = gguf_sources(path, model, config, reader)
    tokenizer.model_max_length = config.max_position_embeddings
    try:
        with atomic_directory(target) as temporary:
            tensors = {name: source.shape for name, source in sources.items()}
            refuse_full_disk(temporary, sum(shape.nbytes for shape in tensors.values()))
            write_model(temporary, tensors, lambda name: _pieces(path, sources[name], processor))
            config.save_pretrained(temporary)
            GenerationConfig.from_model_config(config).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            name_tokenizer_class(temporary)
    except OSError as error:
        raise ModelError(f"{target}: cannot be written: {error.strerror or error}", "set XDG_CACHE_HOME") from error
    return target


def file_type_of(path: Path) -> str:
    """llama.cpp's name of the mixture that a file says it is, such as ``Q4_K_M``; ``unknown`` where it says none.

    Raises:
        ModelError: see ``open_gguf``.
    """
    from gguf import LlamaFileType

    number = open_gguf(path).value("general.file_type")
    known = {int(kind): kind.name for kind in LlamaFileType}
    return known.get(number, "unknown").removeprefix("MOSTLY_").removeprefix("ALL_")


def open_gguf(path: Path) -> GgufReader:
    """The parsed header.

    Raises:
        ModelError: a forged file, or one whose tensors reach beyond its end (a download cut short).
    """
    try:
        return GgufReader(path)
    except OSError as error:
        raise ModelError(
            f"{path}: not a whole GGUF file ({path.stat().st_size:,} bytes): {error}", "get the file again"
        ) from error


def _architecture(path: Path, reader: GgufReader) -> GgufArchitecture:
    """What is known of the file's architecture; all its keys are."""
    name = reader.value("general.architecture")
    known = GGUF.get(name)
    if known is None:
        raise ModelError(f"{path}: GGUF architecture {name} is not read here", f"known: {', '.join(GGUF)}; or use safetensors")
    for key in reader.fields:
        if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in {*COMMON_KEYS, *known.keys}:
            raise ModelError(f"{path}: {key} = {reader.value(key)} is not understood", "use the model's safetensors")
    return known


def _complete(path: Path, config: PretrainedConfig, reader: GgufReader, known: GgufArchitecture) -> None:
    """Put into the configuration what the file says and transformers does not read."""
    name = reader.value("general.architecture")
    facts: dict[str, Any] = {"dtype": torch.float32, "tie_word_embeddings": _is_tied(reader)}
    for key, setting in known.keys.items():
        if setting is not None and (value := reader.value(f"{name}.{key}")) is not None:
            facts[setting] = value
    if known.wide_scale_at is not None:
        heads = config.num_attention_heads
        wide = config.num_hidden_layers == known.wide_scale_at
        facts["query_pre_attn_scalar"] = config.hidden_size // heads if wide else config.head_dim
    config.update(facts)
    factors = next((_read(path, t, None) for t in reader.tensors if t.name == "rope_freqs.weight"), None)
    if factors is not None:
        config.rope_parameters = {**config.rope_parameters, **_scaled_rotary(path, factors, config)}


def _scaled_rotary(path: Path, factors_F: np.ndarray, config: PretrainedConfig) -> dict[str, Any]:
    """The rotary rule whose factors these are (``families.SCALED_ROTARY``): its numbers are solved for, then checked on all.

    Frequencies turn by ``1 / ((1 - s) / factor + s)`` slower, ``s`` rising from 0 to 1 as a wavelength falls from the whole of
    the original context to a quarter of it (transformers ``modeling_rope_utils.py``).
    """
    width, base = 2 * len(factors_F), config.rope_parameters["rope_theta"]
    wavelength_F = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    factor = float(factors_F.max())
    smooth_F = (1 / factors_F - 1 / factor) / (1 - 1 / factor) if factor > 1 else np.ones(len(factors_F))
    between = (smooth_F > 1e-3) & (smooth_F < 1 - 1e-3)
    contexts = wavelength_F[between] * (SLOWEST + (FASTEST - SLOWEST) * smooth_F[between])
    if not len(contexts) or np.ptp(contexts) > 1e-2 * contexts.mean():
        raise ModelError(f"{path}: rope_freqs.weight follows a rule that is not known", "use the model's safetensors")
    return {
        "rope_type": SCALED_ROTARY,
        "factor": round(factor, 4),
        "low_freq_factor": SLOWEST,
        "high_freq_factor": FASTEST,
        "original_max_position_embeddings": round(float(contexts.mean())),
    }


def _is_tied(reader: GgufReader) -> bool:
    """Whether the head is the embedding: it is not in the file, or it is there twice."""
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    head, table = by_name.get("output.weight"), by_name["token_embd.weight"]
    return head is None or (head.tensor_type == table.tensor_type and np.array_equal(head.data, table.data))


def gguf_sources(
    path: Path, model: PreTrainedModel, config: PretrainedConfig, reader: GgufReader
) -> tuple[dict[str, GgufSource], Any]:
    """Where each tensor of the model comes from, and transformers' processor of layouts.

    Raises:
        ModelError: a tensor that has no place in the model, or one that is not in the file.
    """
    import gguf

    architecture = reader.value("general.architecture")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    dtypes = {gguf.GGMLQuantizationType.F16: torch.float16, gguf.GGMLQuantizationType.BF16: torch.bfloat16}
    by_name: dict[str, list[GgufTensor]] = {}
    left = []
    for tensor in reader.tensors:
        place = places.get(tensor.name) or places.get(tensor.name.removesuffix(".weight"))
        if place is not None:
            by_name.setdefault(place, []).append(tensor)
        elif tensor.name != "rope_freqs.weight":
            left.append(tensor.name)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
        by_name.pop("lm_head.weight", None)
    missing = [name for name in expected if name not in by_name]
    if left or missing:
        problem = f"{left[0]} has no place in the model" if left else f"{missing[0]} is not in the file"
        raise ModelError(f"{path}: {problem}", "use the model's safetensors")
    sources = {}
    for name, shape in expected.items():
        parts = tuple(sorted(by_name[name], key=lambda tensor: ".ffn_up" in tensor.name))  # gate before up
        size = sum(int(tensor.n_elements) for tensor in parts)
        if size != math.prod(shape):
            raise ModelError(f"{path}: {parts[0].name} has {size:,} weights, {name} {math.prod(shape):,}", "another config?")
        sources[name] = GgufSource(parts, Shape(shape, dtypes.get(parts[0].tensor_type, torch.float32)))
    return sources, processor


def _pieces(path: Path, source: GgufSource, processor: Any) -> Iterator[torch.Tensor]:
    """The values of one tensor of the model; of stacked experts, each expert's parts in turn."""
    shape = source.shape.shape
    if len(shape) == 3:
        for expert in range(shape[0]):
            for tensor in source.tensors:
                yield torch.from_numpy(_read(path, tensor, expert)).to(source.shape.dtype)
        return
    (tensor,) = source.tensors
    values = processor.process(_read(path, tensor, None), name=tensor.name).weights
    yield torch.from_numpy(np.ascontiguousarray(values)).to(source.shape.dtype)


def _read(path: Path, tensor: GgufTensor, expert: int | None) -> np.ndarray:
    """A tensor's values, or one expert's, fp32. From the file and not from its mapping, whose pages would stay resident."""
    import gguf

    data = tensor.data if expert is None else tensor.data[expert]
    offset = int(tensor.data_offset) + (0 if expert is None else expert * data.nbytes)
    raw = np.fromfile(path, data.dtype, count=data.size, offset=offset).reshape(data.shape)
    return np.asarray(gguf.quants.dequantize(raw, tensor.tensor_type), np.float32)
