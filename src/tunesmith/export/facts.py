"""What the plan of an export has to know of base and adapter, from headers and configuration.

The adapter's shapes follow from its rank and targets: of its own configuration, or before it is trained of the recipe. The
tensors of a GGUF are named by llama.cpp's own table (``gguf.TensorNameMap``); one that the table does not know counts under its
own name. The tokenizer is counted from ``tokenizer.json``: it is a fifth of a tiny model.

Cost: the headers of the checkpoint, a model without memory, and the text of the converter: 1 to 3 s.

Source: ``gguf/tensor_mapping.py``.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Type
from torch import nn
from transformers import AutoModelForCausalLM

from tunesmith.checkpoints.gguf_write.architecture import architecture_of
from tunesmith.checkpoints.gguf_write.types import Metadata, Source
from tunesmith.checkpoints.hf import read_config
from tunesmith.checkpoints.names import naming
from tunesmith.export.base import read_stored
from tunesmith.export.companions import merged_config
from tunesmith.export.forms.form import Facts
from tunesmith.export.plan import Write, plan_merge, with_own_head
from tunesmith.export.sizes import companion_bytes, header_bytes, vocabulary_bytes
from tunesmith.families import FAMILIES
from tunesmith.models.adapter import splits_tables
from tunesmith.models.swap import target_names
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.adapter import has_patterns, read_adapter_config

IN_FP32 = ("_norm.weight", "ffn_gate_inp.weight")  # by the converter, whatever their shape


def read_facts(recipe: Recipe, lora: Lora | None, base: Path, template: str, adapter: Path | None = None) -> Facts:
    """Read what the plan needs.

    Args:
        lora: rank, kind and targets of the adapter; None of a whole tuned model.
        base: directory of the base model (safetensors), or of that model.
        template: the chat template that the run trains with.
        adapter: PEFT directory of an adapter of another tool; None for one of the recipe's own.

    Raises:
        ExportError: llama.cpp's converter does not know the architecture, or a dtype is not known.
        ModelError: the base cannot be read.
        TrainingError: the adapter's targets are not in the model.
    """
    stored, names = read_stored(base), naming(base)
    keep = recipe.towers == "keep"
    writes = plan_merge(stored, names, {}, frozenset(), frozenset(), keep)
    apart = adapter is not None and splits_tables(adapter, base)
    if apart:
        writes = with_own_head(writes, names, keep)
    config, _ = read_config(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    adapted = {} if lora is None else adapted_shapes(model, target_names(model, lora.target_modules))
    tied = bool(config.tie_word_embeddings) and not apart
    facts = json.loads((base / "config.json").read_text(encoding="utf-8"))
    architecture = architecture_of(str((merged_config(facts, keep, tied).get("architectures") or ["none"])[0]))
    family = FAMILIES.get(config.model_type)
    transposed = bool(family and family.experts and family.experts.layout == "EIO")
    tensors = gguf_sources(writes.values(), architecture, config.num_hidden_layers, transposed, tied)
    return Facts(
        name=str(recipe.name),
        merged=sum(math.prod(write.shape) * write.dtype.itemsize for write in writes.values()) + companion_bytes(base),
        tensors=tuple(tensors),
        metadata=_metadata(config.to_dict(), gguf.MODEL_ARCH_NAMES[architecture]),
        header=header_bytes(len(tensors), vocabulary_bytes(base), template),
        lora=lora,
        adapted=adapted,
        modeled=tuple(write.model for write in writes.values() if write.model is not None),
        renamed=any(names.of_checkpoint(name) != name for name in adapted),
        ranks_differ=adapter is not None and has_patterns(read_adapter_config(adapter)),
        is_4bit=any(weight.is_nf4 for weight in stored.values()),
    )


def adapted_shapes(model: nn.Module, targets: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """(matrices, outputs, inputs) of what is adapted, by its full name; both projections of a module of experts."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for name in targets:
        for leaf, weight in model.get_submodule(name).named_parameters(recurse=False):
            if weight.dim() == 3:
                shapes[f"{name}.{leaf}"] = (weight.shape[0], weight.shape[1], weight.shape[2])
            elif leaf == "weight":
                shapes[name] = (1, weight.shape[0], weight.shape[1])
    return shapes


def gguf_sources(
    writes: Iterable[Write], architecture: gguf.MODEL_ARCH, layers: int, transposed: bool, tied: bool
) -> list[Source]:
    """The tensors of the 16-bit GGUF of a merged model. A pure function.

    Args:
        transposed: stacks of experts lie as (E, inputs, outputs); a GGUF has the inputs last.
        tied: the head is the embedding, and none is written.
    """
    names = gguf.get_tensor_name_map(architecture, layers)
    shapes: dict[str, tuple[int, ...]] = {}
    experts: Counter[str] = Counter()
    for write in writes:
        if write.model is None or (tied and write.model.startswith("lm_head.")):
            continue
        name, shape = write.model, write.shape
        if write.part is not None:  # one expert's projection, of which a GGUF has a stack
            name = name.replace(f".experts.{write.part.expert}.", ".experts.")
            experts[name] += 1
            shape = (experts[name], *shape)
        elif transposed and len(shape) == 3:
            shape = (shape[0], shape[2], shape[1])
        shapes[names.get_name(name, try_suffixes=(".weight", ".bias")) or name] = shape
    return [Source(name, shape, _kind(name, shape)) for name, shape in shapes.items()]


def _kind(name: str, shape: tuple[int, ...]) -> Type:
    return Type.F32 if len(shape) < 2 or name.endswith(IN_FP32) else Type.F16


def _metadata(config: Mapping[str, Any], name: str) -> Metadata:
    """The keys of a GGUF that the rule of types asks for."""
    experts = next((config[key] for key in ("num_experts", "num_local_experts") if config.get(key)), 0)
    heads = config.get("num_attention_heads", 1)
    return {
        "general.architecture": name,
        f"{name}.block_count": config["num_hidden_layers"],
        f"{name}.expert_count": experts,
        f"{name}.attention.head_count": heads,
        f"{name}.attention.head_count_kv": config.get("num_key_value_heads") or heads,
    }
