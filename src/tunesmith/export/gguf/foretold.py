"""Whether a file type would take a training back, told from a few weights of the base before anything is trained.

Of each kind of layer and type one matrix, that of the middle layer, gets a small random change; 256 rows of it are rounded as
the file will be, and what is left of the change is measured (``checkpoints/gguf_write/kept.py``) and counts for all matrices of
its kind. The change is as large as what LoRA adds (0.6 to 0.8 % of the weights' size, docs/explanation/bits.md); where weights
lie on a type's grid it is lost whatever its direction, so a random one tells as much as the trained one will.

Refused: to compare the types of the base's own file with those that are written. Q4_K takes back what is trained on Q4_1 (its
grid has the same points), and a checkpoint of 16 bits may lie on a grid too, as releases for quantisation do.

Cost: 0.1 s a type.

Shape suffixes: P some of the rows, I in_features.
"""

from functools import reduce
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

from tunesmith.checkpoints.gguf_write.kept import Added, Kept, kept_of
from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.checkpoints.gguf_write.types import plan_types
from tunesmith.checkpoints.gguf_write.unpack import values_of
from tunesmith.checkpoints.names import naming
from tunesmith.export.base import read_stored
from tunesmith.export.forms.form import Facts
from tunesmith.export.gguf.lora import gguf_names
from tunesmith.kernels.ggml import unpacker

ROWS, RANK = 256, 4
CHANGE = 0.007  # of the weights' size


def foretold(facts: Facts, base: Path, file_type: str) -> Kept:
    """How much of a small change a file type would keep.

    Args:
        base: directory of the base model.
        file_type: a plain type.

    Raises:
        ExportError: a type that the rule does not give to these tensors.
    """
    architecture = str(facts.metadata["general.architecture"])
    names = gguf_names(architecture, int(facts.metadata[f"{architecture}.block_count"]))
    types = plan_types(facts.tensors, file_type, facts.metadata)
    stored, of = read_stored(base), naming(base)
    alike: dict[tuple[str, Type], list[str]] = {}
    for module, (matrices, *_) in facts.adapted.items():
        kind = types.get(names.get_name(f"{module}.weight", try_suffixes=(".weight",)) or "")
        if matrices == 1 and kind is not None and unpacker(kind.name) is not None:
            alike.setdefault((module.rpartition(".")[2], kind), []).append(module)
    found: list[Kept] = []
    for (_, kind), modules in alike.items():
        module = modules[len(modules) // 2]
        weight = stored.get(name := of.of_checkpoint(f"{module}.weight"))
        if weight is None or weight.is_nf4 or weight.packed is not None:
            continue
        with safe_open(weight.file, framework="pt") as opened:
            plain_PI = opened.get_slice(name)[:ROWS].float()
        found.append(_of_rows(plain_PI, kind).times(len(modules) * weight.shape[0] / len(plain_PI)))
    return reduce(Kept.plus, found, Kept())


def _of_rows(plain_PI: torch.Tensor, kind: Type) -> Kept:
    """What is left of a random update of low rank, of ``CHANGE`` of the weights' size."""
    draw = torch.Generator().manual_seed(0)
    rows, columns = plain_PI.shape
    change_PI = Added(torch.randn(rows, RANK, generator=draw), torch.randn(RANK, columns, generator=draw)).rows(0, rows)
    change_PI *= CHANGE * plain_PI.norm() / change_PI.norm()
    changed_PI = (plain_PI + change_PI).contiguous()
    return kept_of(changed_PI, values_of(ggml().quantize(changed_PI.numpy(), kind, None), kind, columns), change_PI)
