"""What an export will write, in which order and how large, before a byte of it is written.

An export of a large model takes an hour and three times the model's bytes on the disk. What can go wrong with it (no room, an
adapter that a form cannot hold, an architecture that llama.cpp does not convert) is known from names and shapes. So the plan
is a pure function of them (``export/form_facts.py`` reads them); ``api/export.py`` carries it out, ``--dry-run`` prints it.

**Sizes.** Of a GGUF: llama.cpp's rule says the type of every tensor (``export/gguf/types.py``), and the tokenizer that stands
before them is counted. Held within 2 % of the real files by a test.

**Room.** The old export stays until the new one is whole, so everything counts that lies there at the same time. A file that
later steps alone need, as the 16-bit GGUF that the others are quantised from, is gone after the last of them.

Refused: to ask the file system for room before each step. An export that fails at its last file has wasted the hour.

Source: GGUF's layout, ``docs/gguf.md`` of ggml.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gguf import GGMLQuantizationType as Type

from tunesmith.errors import ExportError
from tunesmith.export.gguf.types import Source, nbytes, plan_types
from tunesmith.recipe.run import Export

Kind = Literal[
    "merge",
    "measure",
    "adapter-vllm",
    "convert",
    "imatrix",
    "quantize",
    "lora-gguf",
    "base-gguf",
    "modelfile",
    "commands",
    "card",
]
FULL = ("F16", "BF16")  # types that the converter writes
ALIGNMENT = 32  # bytes; every tensor of a GGUF begins at a multiple
TEXT = 4096  # bytes of a Modelfile, a card, the commands: a few kB each


@dataclass(frozen=True)
class Operation:
    """One step of an export.

    Attributes:
        kind: what is done.
        target: file or directory that it writes, relative to ``export/``.
        sources: targets that it reads; empty where it reads base and adapter.
        nbytes: of the target, as predicted.
        scratch: bytes beside the target that are gone when the step ends.
        file_type: llama.cpp's, of a GGUF.
        until: the target of the last step that needs this one, after which it is removed; None where it stays.
    """

    kind: Kind
    target: str
    sources: tuple[str, ...]
    nbytes: int
    scratch: int = 0
    file_type: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Facts:
    """What the plan has to know of base and adapter.

    Attributes:
        name: of the run; files begin with it.
        merged: bytes of the merged directory.
        tensors: of the 16-bit GGUF.
        metadata: what the rule of types asks of a GGUF's metadata.
        header: bytes of a GGUF before its tensors.
        adapted: (matrices, outputs, inputs) of each target; a stack of experts has several matrices.
        rank: of the adapter.
        refused: why no adapter GGUF can be written; None where it can.
        vllm: bytes of the adapter in vLLM's form where that differs; None where it does not.
        base_is_gguf: the recipe's model is a GGUF file, which serves as the base GGUF as it is.
        base_is_4bit: the checkpoint lies in 4 bits, of which the converter makes no GGUF.
        both_merges: the dequantised merge is written too, to be measured and removed again.
    """

    name: str
    merged: int
    tensors: tuple[Source, ...]
    metadata: Mapping[str, Any]
    header: int
    adapted: tuple[tuple[int, int, int], ...]
    rank: int
    refused: str | None = None
    vllm: int | None = None
    base_is_gguf: bool = False
    base_is_4bit: bool = False
    both_merges: bool = False


def plan_export(settings: Export, facts: Facts) -> list[Operation]:
    """The steps in the order in which they are done. A pure function.

    Raises:
        ExportError: an adapter or base GGUF that cannot be written; a type that the rule does not give to these tensors.
    """
    if settings.lora_gguf and facts.refused:
        raise ExportError(f"export.lora_gguf: {facts.refused}", "serve the merged GGUF, and set export.lora_gguf: false")
    if settings.lora_gguf and facts.base_is_4bit:
        raise ExportError(
            "export.lora_gguf: the checkpoint lies in 4 bits, and llama.cpp's converter reads no such weights",
            "name the 16-bit model as model, or set export.lora_gguf: false",
        )
    both = facts.merged if facts.both_merges else 0
    steps = [Operation("merge", "merged", (), facts.merged), Operation("measure", "merge.json", ("merged",), TEXT, both)]
    if facts.vllm is not None:
        steps.append(Operation("adapter-vllm", "adapter-vllm", (), facts.vllm))
    steps += _ggufs(settings, facts)
    if settings.lora_gguf:
        steps += _adapter_ggufs(settings, facts)
    made = tuple(step.target for step in steps if step.until is None)
    deployed = gguf_name(facts.name, settings.gguf[-1])
    steps.append(Operation("modelfile", "Modelfile", (deployed,), TEXT))
    if settings.lora_gguf:
        steps.append(Operation("modelfile", "Modelfile.adapter", (lora_name(facts.name),), TEXT))
    steps.append(Operation("commands", "commands.json", made, TEXT))
    steps.append(Operation("card", "merged/README.md", made, TEXT))
    return steps


def peak(steps: Iterable[Operation], there: Iterable[str] = ()) -> int:
    """Most bytes that the steps' targets take at a time.

    Args:
        there: targets that lie on the disk already.
    """
    found, lying, most = set(there), 0, 0
    held: list[Operation] = []
    for step in steps:
        if step.target not in found:
            lying += step.nbytes
            most = max(most, lying + step.scratch)
            held += [step] if step.until is not None else []
        ended = [other for other in held if other.until == step.target]
        lying -= sum(other.nbytes for other in ended)
        held = [other for other in held if other not in ended]
    return most


def gguf_name(run: str, file_type: str) -> str:
    """File of the merged model in a llama.cpp type."""
    return f"{run}-{file_type}.gguf"


def base_name(run: str, file_type: str) -> str:
    """File of the base, for the adapter to be applied to."""
    return f"{run}-base-{file_type}.gguf"


def lora_name(run: str) -> str:
    """File of the adapter."""
    return f"{run}-lora.gguf"


def imatrix_name(run: str) -> str:
    """File of the importance matrix."""
    return f"{run}.imatrix.gguf"


def _ggufs(settings: Export, facts: Facts) -> list[Operation]:
    steps, half = [], gguf_name(facts.name, "F16")
    smaller = [kind for kind in settings.gguf if kind not in FULL]
    importance = imatrix_name(facts.name)
    for kind in FULL:
        if kind in settings.gguf or (kind == "F16" and smaller):
            last = None if kind in settings.gguf else gguf_name(facts.name, smaller[-1])
            target = gguf_name(facts.name, kind)
            steps.append(Operation("convert", target, ("merged",), gguf_bytes(facts, kind), 0, kind, last))
    if settings.imatrix:
        steps.append(Operation("imatrix", importance, ("merged",), _imatrix_bytes(facts)))
    sources = (half, importance) if settings.imatrix else (half,)
    for kind in smaller:
        size = gguf_bytes(facts, kind, settings.imatrix)
        steps.append(Operation("quantize", gguf_name(facts.name, kind), sources, size, 0, kind))
    return steps


def _adapter_ggufs(settings: Export, facts: Facts) -> list[Operation]:
    steps = [Operation("lora-gguf", lora_name(facts.name), (), adapter_bytes(facts.adapted, facts.rank))]
    if facts.base_is_gguf:
        return steps
    kind = settings.gguf[-1]
    target = base_name(facts.name, kind)
    if kind not in FULL:
        half = base_name(facts.name, "F16")
        steps.append(Operation("base-gguf", half, (), gguf_bytes(facts, "F16"), 0, "F16", target))
        steps.append(Operation("base-gguf", target, (half,), gguf_bytes(facts, kind), 0, kind))
    else:
        steps.append(Operation("base-gguf", target, (), gguf_bytes(facts, kind), 0, kind))
    return steps


def gguf_bytes(facts: Facts, file_type: str, has_imatrix: bool = False) -> int:
    """Bytes of a GGUF file of a type."""
    sources = list(facts.tensors)
    if file_type in FULL:
        wide = {source.name for source in sources if source.kind == Type.F32}
        types = {source.name: Type.F32 if source.name in wide else Type[file_type] for source in sources}
    else:
        types = plan_types(sources, file_type, dict(facts.metadata), has_imatrix)
    return facts.header + nbytes(sources, types) + ALIGNMENT // 2 * len(sources)


def adapter_bytes(adapted: Iterable[tuple[int, int, int]], rank: int) -> int:
    """Bytes of an adapter in fp32.

    Args:
        adapted: (matrices, outputs, inputs) of each target.
    """
    return sum(4 * matrices * rank * (outputs + inputs) for matrices, outputs, inputs in adapted)


def _imatrix_bytes(facts: Facts) -> int:
    """A value in fp32 for each column of each matrix of the blocks, and a count for each matrix."""
    total = 0
    for source in facts.tensors:
        if len(source.shape) > 1 and source.name.startswith("blk."):
            total += 4 * math.prod(source.shape[:-2]) * (source.shape[-1] + 1)
    return total
