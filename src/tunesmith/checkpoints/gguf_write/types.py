"""Which type llama.cpp gives each tensor of a quantised file: its rule, restated as a pure function.

A file type such as Q4_K_M is a mixture. The base type is given to most matrices; values and down projections of some layers,
the head, and in mixtures of eight experts the keys get more bits; norms, vectors and the routers of experts keep what they
are. The rule is code in llama.cpp, not data, and no package offers it without a compiler, so it is written here branch by
branch for the ten types that a recipe can name. The oracle is ``llama-quantize`` itself: tests hold whole files to its bytes.

What is easily missed:

* Tensors come in the order of layers, then of names, and the file is written in that order.
* Values are counted as they come, so layers without any do not count. Down projections are counted as well, except in a
  mixture, where the layer is read from the name; the number of layers is the file's ``block_count``.
* Without ``output.weight`` the head is tied, and every embedding table takes the head's type, that of per-layer embeddings too.
* K-types and IQ4_XS hold 256 weights a block. A row that is no multiple of 256 falls back to a type of 32, so that a small
  model's "Q4_K_M" may be six bits a weight, and a row that is no multiple of 32 falls back to F16. A type of 32 itself has no
  fallback: llama.cpp refuses, and so do we.
* An importance matrix changes types: first down projections get more bits in Q4_0 with it, in IQ4_XS without it. None of the
  ten types requires one.
* MXFP4_MOE is the type of a mixture: stacks of experts in MXFP4, everything else in Q8_0. llama.cpp writes it of a dense model
  too, as another name for Q8_0, which is refused here. Values that were MXFP4 come through it unchanged: blocks of 32 under a
  power of two, which the largest of them gives back (down to 2^-23, where the 16-bit file between them ends).

Source: llama.cpp ``src/llama-quant.cpp``, ``tensor_allows_quantization``, ``llama_tensor_get_type_impl``,
``tensor_type_fallback`` and ``init_quantize_state_counters`` (build b10605).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from tunesmith.checkpoints.gguf_reader import GgufReader, GgufTensor
from tunesmith.errors import ExportError
from tunesmith.families import GGUF_70B, GGUF_OWN_MIXTURE

BASE_TYPE = {
    "F16": Type.F16,
    "BF16": Type.BF16,
    "Q8_0": Type.Q8_0,
    "Q6_K": Type.Q6_K,
    "Q5_K_M": Type.Q5_K,
    "Q4_K_M": Type.Q4_K,
    "Q4_0": Type.Q4_0,
    "IQ4_XS": Type.IQ4_XS,
    "Q3_K_M": Type.Q3_K,
    "MXFP4_MOE": Type.MXFP4,
}
FILE_TYPE = {name: LlamaFileType[f"MOSTLY_{name}"] for name in BASE_TYPE}
FALLBACK = {Type.IQ4_XS: Type.IQ4_NL, Type.Q3_K: Type.Q4_0, Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
DENSE = (Type.F32, Type.F16, Type.BF16)

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
VALUES = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")
# By the first of these that is part of the name.
CATEGORIES = (*VALUES, "attn_k.weight", "attn_q.weight", "attn_output.weight", "ffn_up", "ffn_gate", "ffn_down")
WHOLE = ("position_embd.weight", "token_types.weight")  # names of matrices that are never quantised; below, parts of names
KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    *("time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight"),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd"),
)

Metadata = Mapping[str, Any]  # keys of a GGUF file


@dataclass(frozen=True)
class Source:
    """What the rule needs to know of a tensor.

    Attributes:
        name: in the file.
        shape: row length last, experts first; leading dimensions of one are dropped, as llama.cpp drops them.
        kind: what it is stored in.
    """

    name: str
    shape: tuple[int, ...]
    kind: Type


@dataclass(frozen=True)
class _Model:
    """What the rule needs to know of the model as a whole."""

    has_own_mixture: bool
    layers: int
    experts: int
    queries_per_key: int
    is_70b: bool
    is_tied: bool
    values: int


def sources_of(reader: GgufReader) -> list[Source]:
    """The tensors of a GGUF file, in its order."""
    return [Source(tensor.name, _shape(tensor), tensor.tensor_type) for tensor in reader.tensors]


def metadata_of(reader: GgufReader) -> Metadata:
    """The keys of a GGUF file that the rule reads."""
    wanted = (".block_count", ".expert_count", ".head_count", ".head_count_kv", "general.architecture")
    return {name: field.contents() for name, field in reader.fields.items() if name.endswith(wanted)}


def plan_types(tensors: Iterable[Source], file_type: str, metadata: Metadata, has_imatrix: bool = False) -> dict[str, Type]:
    """The type that llama.cpp gives each tensor, in the order in which it writes them. A pure function.

    Args:
        tensors: of the 16-bit file.
        file_type: a key of ``BASE_TYPE``.
        metadata: as ``metadata_of`` reads it.
        has_imatrix: whether an importance matrix is given.

    Raises:
        ExportError: a file type that is not known, a row length that no type takes, a name without a layer in a mixture, or the
            type of mixtures for a model that is none.
    """
    if file_type not in BASE_TYPE:
        raise ExportError(f"file type {file_type} is not known", f"known: {', '.join(BASE_TYPE)}")
    ordered = sorted(tensors, key=lambda tensor: (_layer(tensor.name), tensor.name))
    model, base = _model(ordered, metadata), BASE_TYPE[file_type]
    if base == Type.MXFP4 and model.experts < 2:
        raise ExportError("MXFP4_MOE is for the experts of a mixture, and this model has none", "Q8_0 is all that it would be")
    seen: Counter[str] = Counter()
    types: dict[str, Type] = {}
    for tensor in ordered:
        if not _is_quantised(tensor):
            types[tensor.name] = tensor.kind
        elif base in DENSE:
            types[tensor.name] = base
        else:
            chosen = _chosen(tensor, file_type, model, seen, has_imatrix)
            types[tensor.name] = _fitting(tensor, chosen)
    return types


def nbytes(sources: Iterable[Source], types: Mapping[str, Type]) -> int:
    """Bytes of the tensors in a file with these types, without metadata and padding."""
    return sum(math.prod(s.shape[:-1]) * row_bytes(types[s.name], s.shape[-1]) for s in sources)


def row_bytes(kind: Type, columns: int) -> int:
    """Bytes of a row in any type that a file may have; ``kernels/blocks.py`` knows those that are computed in."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert columns % block == 0, f"rows of {columns} weights in {kind.name}, whose blocks hold {block}"
    return columns // block * size


def _shape(tensor: GgufTensor) -> tuple[int, ...]:
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _model(tensors: list[Source], metadata: Metadata) -> _Model:
    architecture = metadata["general.architecture"]
    layers = int(metadata[f"{architecture}.block_count"])
    heads = _first(metadata.get(f"{architecture}.attention.head_count", 0))
    keys = _first(metadata.get(f"{architecture}.attention.head_count_kv", heads))
    large, shared = GGUF_70B.get(architecture, (0, False))
    names = [tensor.name for tensor in tensors]
    return _Model(
        architecture == GGUF_OWN_MIXTURE,
        layers,
        int(metadata.get(f"{architecture}.expert_count", 0)),
        heads // keys if keys else 0,
        layers == large and (heads != keys or not shared),
        "output.weight" not in names,
        sum(_category(name) in VALUES for name in names),
    )


def _first(value: int | list[int]) -> int:
    """Of a number that may differ from layer to layer, the first layer's, as llama.cpp takes it."""
    return int(value[0] if isinstance(value, list) else value)


def _is_quantised(tensor: Source) -> bool:
    name = tensor.name
    stays = name in WHOLE or any(part in name for part in KEPT)
    return len(tensor.shape) > 1 and name.endswith("weight") and not stays


def _category(name: str) -> str:
    if name == "output.weight" or name in EMBEDDINGS:
        return name
    return next((part for part in CATEGORIES if part in name), "")


def _chosen(tensor: Source, file_type: str, model: _Model, seen: Counter[str], has_imatrix: bool) -> Type:
    """The type by the tensor's part in the model, before its row length is looked at; counts it in ``seen``."""
    category, base = _category(tensor.name), BASE_TYPE[file_type]
    if category == "output.weight" or (model.is_tied and category in EMBEDDINGS):
        fits = tensor.shape[-1] % gguf.GGML_QUANT_SIZES[base][0] == 0
        wide = base in (Type.Q8_0, Type.MXFP4) or model.has_own_mixture
        return Type.Q6_K if fits and not wide else Type.Q8_0
    if base == Type.MXFP4:
        return base if len(tensor.shape) > 2 else Type.Q8_0
    if category in VALUES:
        seen["values"] += 1
        return _of_values(seen["values"] - 1, file_type, model)
    if category == "attn_k.weight":
        return Type.Q8_0 if model.experts == 8 else base
    if category == "attn_output.weight":
        return _of_attention_output(file_type, model)
    if category.startswith("ffn_"):
        index = seen[category]
        seen[category] += 1
        if model.experts > 1:
            index = _layer(tensor.name)
            if not 0 <= index < model.layers:
                raise ExportError(
                    f"{tensor.name}: a mixture's tensor must be of a layer from 0 to {model.layers - 1}", "export F16 only"
                )
        return _of_down(index, file_type, model, has_imatrix) if category == "ffn_down" else base
    return base


def _of_values(index: int, file_type: str, model: _Model) -> Type:
    kind = BASE_TYPE[file_type]
    if file_type == "Q3_K_M":
        kind = Type.Q5_K if index < 2 else Type.Q4_K
    elif file_type == "IQ4_XS" and model.queries_per_key >= 4:
        kind = Type.Q5_K
    elif file_type in ("Q4_K_M", "Q5_K_M") and _more_bits(index, model.values):
        kind = Type.Q6_K
    if model.is_70b and kind in (Type.Q3_K, Type.Q4_K):
        kind = Type.Q5_K
    return Type.Q8_0 if model.experts == 8 else kind


def _of_down(index: int, file_type: str, model: _Model, has_imatrix: bool) -> Type:
    base, layers = BASE_TYPE[file_type], model.layers
    more = _more_bits(index, layers)
    if file_type == "Q3_K_M":
        return Type.Q5_K if index < layers // 16 else Type.Q4_K if not model.has_own_mixture or more else base
    if file_type == "Q4_K_M" and model.has_own_mixture:
        return Type.Q6_K if index < layers // 16 else Type.Q5_K if more else base
    if file_type in ("Q4_K_M", "Q5_K_M"):
        return Type.Q6_K if more else base
    if file_type == "IQ4_XS" and not has_imatrix and index < layers // 8:
        return Type.Q5_K
    if file_type == "Q4_0" and has_imatrix and index < layers // 8:
        return Type.Q4_1
    return base


def _of_attention_output(file_type: str, model: _Model) -> Type:
    base = BASE_TYPE[file_type]
    if model.has_own_mixture:
        return base
    if model.experts == 8:
        return Type.Q5_K if file_type in ("Q3_K_M", "Q4_K_M", "IQ4_XS") else base
    return Type.Q4_K if file_type == "Q3_K_M" else base


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _fitting(tensor: Source, kind: Type) -> Type:
    """The type, or what takes its place where its blocks do not divide a row."""
    row = tensor.shape[-1]
    if row % gguf.GGML_QUANT_SIZES[kind][0] == 0:
        return kind
    if kind not in FALLBACK:
        raise ExportError(
            f"{tensor.name}: rows of {row} weights, {kind.name} takes multiples of 32", "Q6_K keeps such rows in F16"
        )
    kind = FALLBACK[kind]
    return kind if row % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Type.F16


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)", name)
    return int(match[1]) if match else -1
