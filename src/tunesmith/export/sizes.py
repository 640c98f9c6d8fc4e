"""Bytes of the files of an export, from names and shapes: one arithmetic for ``export --dry-run``, ``plan`` and refusals.

Of a GGUF llama.cpp's rule says the type of every tensor (``checkpoints/gguf_write/types.py``), and the tokenizer before them is
counted. Names and shapes come from the headers of a checkpoint (``export/facts.py``), or before it is fetched from the sizes in
its ``config.json`` (``sources_of``); a test holds one against the other.

What is not at hand is assumed: ``TOKEN`` and ``TOKEN_FILES`` bytes an entry of the vocabulary.

Source: GGUF's layout, ``docs/gguf.md`` of ggml.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from gguf import GGMLQuantizationType as Type

from tunesmith.checkpoints.gguf_write.types import Metadata, Source, nbytes, plan_types
from tunesmith.errors import ExportError
from tunesmith.memory.shape import Layer, Shape
from tunesmith.recipe.run import plain_type

FULL = ("F16", "BF16")  # types that the converter writes
ALIGNMENT = 32  # bytes; every tensor of a GGUF begins at a multiple
SETTINGS = 2048  # bytes of a GGUF's short keys, about
INFO = 64  # bytes of a tensor's entry in a GGUF, about: name, shape, type, place
SUFFIXES = {".json", ".jinja", ".model", ".txt"}  # of the files beside the weights
TOKEN = 36  # bytes of a GGUF for an entry of the vocabulary: its text, its type, its merge; 37 measured in one of 49,152
TOKEN_FILES = 75  # bytes of a tokenizer's files for one; 72 in the same


def header_bytes(tensors: int, vocabulary: int, template: str = "") -> int:
    """Bytes of a GGUF before its tensors.

    Args:
        tensors: how many there are.
        vocabulary: bytes of the tokenizer in it.
        template: of the chat.
    """
    return SETTINGS + INFO * tensors + vocabulary + len(template.encode())


def gguf_bytes(tensors: Iterable[Source], metadata: Metadata, header: int, file_type: str, has_imatrix: bool = False) -> int:
    """Bytes of a GGUF file of a type; of a dynamic one the most that it may have, which it nearly takes.

    Args:
        tensors: of the 16-bit file.
        metadata: what the rule of types asks.
        header: bytes before the tensors.

    Raises:
        ExportError: a type that the rule does not give to these tensors.
    """
    sources = list(tensors)
    if file_type in FULL:
        wide = {source.name for source in sources if source.kind == Type.F32}
        types = {source.name: Type.F32 if source.name in wide else Type[file_type] for source in sources}
    else:
        types = plan_types(sources, plain_type(file_type), dict(metadata), has_imatrix)
    return header + nbytes(sources, types) + ALIGNMENT // 2 * len(sources)


def vocabulary_bytes(base: Path) -> int:
    """Bytes of the tokenizer in a GGUF: tokens, their types, and merges or scores.

    Raises:
        ExportError: no readable ``tokenizer.json``.
    """
    try:
        facts = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
        model = facts["model"]
        vocabulary = model["vocab"]
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(f"{base}: the tokenizer cannot be read: {error}", "is tokenizer.json there?") from error
    tokens = [entry if isinstance(entry, str) else entry[0] for entry in vocabulary]
    tokens += [entry["content"] for entry in facts.get("added_tokens", [])]
    sizes = sum(8 + len(token.encode("utf-8", "surrogatepass")) for token in dict.fromkeys(tokens))
    if (base / "tokenizer.model").exists():  # SentencePiece: a score and a type for each token, no merges
        return sizes + 8 * len(tokens)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    return sizes + 4 * len(tokens) + sum(8 + len(merge.encode("utf-8", "surrogatepass")) for merge in merges)


def companion_bytes(base: Path) -> int:
    """Bytes of configuration, tokenizer and template."""
    return sum(file.stat().st_size for file in base.iterdir() if file.suffix in SUFFIXES)


def sources_of(shape: Shape) -> list[Source]:
    """The tensors of a model's 16-bit GGUF, from its sizes alone; all norms and vectors are counted as one."""
    hidden = shape.hidden
    found = [Source("output_norm.weight", (shape.norms,), Type.F32), _matrix("token_embd.weight", shape.vocab, hidden)]
    if not shape.tied:
        found.append(_matrix("output.weight", shape.vocab, hidden))
    if shape.per_layer:
        width = shape.layers[0].per_layer
        found.append(_matrix("per_layer_token_embd.weight", shape.per_layer // (shape.depth * width), shape.depth * width))
        found.append(_matrix("per_layer_model_proj.weight", shape.depth * width, hidden))
    for number, layer in enumerate(shape.layers):
        found += [_matrix(f"blk.{number}.{name}.weight", *size) for name, size in _matrices(layer, hidden)]
        if layer.experts:
            found.append(Source(f"blk.{number}.ffn_gate_inp.weight", (layer.experts, hidden), Type.F32))
    return found


def _matrix(name: str, *shape: int) -> Source:
    return Source(name, shape, Type.F16)


def _matrices(layer: Layer, hidden: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a layer's matrices, as llama.cpp calls them."""
    names = ("attn_qkv",) if layer.fused else ("attn_q", "attn_k", "attn_v")
    yield from ((name, (width, hidden)) for name, width in zip(names, layer.inputs, strict=False))
    yield "attn_output", (hidden, layer.query)
    if layer.intermediate:
        gates = ("ffn_up",) if layer.fused else ("ffn_gate", "ffn_up")
        yield from ((name, (width, hidden)) for name, width in zip(gates, layer.gates, strict=True))
        yield "ffn_down", (hidden, layer.intermediate)
    for suffix, count, width in (("exps", layer.experts, layer.expert), ("shexp", 1, layer.shared)):
        if count and width:
            stack = (count,) if count > 1 else ()
            yield from ((f"ffn_{name}_{suffix}", (*stack, width, hidden)) for name in ("gate", "up"))
            yield f"ffn_down_{suffix}", (*stack, hidden, width)
    if layer.per_layer:
        yield "inp_gate", (layer.per_layer, hidden)
        yield "proj", (hidden, layer.per_layer)


def metadata_of(shape: Shape, architecture: str) -> Mapping[str, object]:
    """What the rule of types asks of a GGUF, from a model's sizes."""
    layer = shape.layers[0]
    facts = {"block_count": shape.depth, "expert_count": layer.experts}
    facts |= {"attention.head_count": layer.heads, "attention.head_count_kv": layer.seen_kv_heads}
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in facts.items()}
