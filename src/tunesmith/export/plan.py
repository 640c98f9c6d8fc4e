"""What a merged model directory will hold: every tensor's name, shape, dtype and origin, before one weight is read.

The plan is a pure function of names and shapes, so that all that can be wrong with it (another base, an adapter that fits
nothing, too little room) is found in a second and nothing half-made is left behind. ``export/merge.py`` carries it out.

**Names.** An adapter names the weights of the text model; a checkpoint may call them otherwise, hold towers beside them, or
hold each expert's projections apart where the model has one stacked weight (``checkpoints/names.py``). With towers kept
the merged directory has the checkpoint's names; with towers dropped it has those of the text model.

**Updates.** Whatever was trained is brought to one form, ``left @ right`` added to the rows of a matrix: for a linear layer
``scale B`` and ``A``; for an expert of a stack whose weights lie as (inputs, outputs), ``scale A^T`` and ``B^T``; for one
projection of one expert, its share of the rows of B.

Shape suffixes: O out_features, I in_features, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from tunesmith.checkpoints.names import ExpertPart, Naming, expert_part
from tunesmith.checkpoints.quantized.layout import Packed
from tunesmith.checkpoints.shards import Shape
from tunesmith.errors import ExportError
from tunesmith.recipe.tables import table_of

OWN_HEAD = "lm_head.weight"  # of every family here whose head may be its embedding


@dataclass(frozen=True)
class Stored:
    """A weight as the checkpoint holds it.

    Attributes:
        file: the safetensors file.
        shape: of the dense weight.
        dtype: of the dense weight; of a 4-bit one, the dtype that it was quantised from.
        is_nf4: it lies there in 4 bits, in several tensors.
        packed: how it lies there, where it is quantised in another way.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_nf4: bool = False
    packed: Packed | None = None


@dataclass(frozen=True)
class Update:
    """What training adds to a matrix: ``left @ right``, and with DoRA the length of each row after it.

    Attributes:
        left_OR: fp32, the scale included.
        right_RI: fp32.
        length_O: fp32, or None.
    """

    left_OR: torch.Tensor
    right_RI: torch.Tensor
    length_O: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that it fits."""
        return self.left_OR.shape[0], self.right_RI.shape[1]

    def rows(self, first: int, end: int) -> "Update":
        """The update of some rows."""
        length_O = None if self.length_O is None else self.length_O[first:end]
        return Update(self.left_OR[first:end], self.right_RI, length_O)


@dataclass(frozen=True)
class Write:
    """One tensor of the merged directory.

    Attributes:
        source: its name in the checkpoint.
        model: its name in the text model; None where it belongs to a tower.
        shape: as in the checkpoint, dense.
        dtype: as in the checkpoint, dense.
        form: how the base's values are read: as they lie there (``dense``), from 4 bits (``nf4``), or quantised and
            dequantised as training did, in blocks over the flat weight (``requantized``) or row by row.
        part: its place in a stacked weight, where it is one expert's.
        update: key of its update, if it is a target.
    """

    source: str
    model: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    form: Literal["dense", "nf4", "requantized", "requantized rows"]
    part: ExpertPart | None
    update: str | None

    @property
    def stack(self) -> str:
        """The weight of the model that it is or belongs to."""
        return self.part.stacked if self.part else self.model or self.source


def plan_merge(
    stored: Mapping[str, Stored],
    naming: Naming,
    updates: Mapping[str, list[Update]],
    weights: frozenset[str],
    tables: frozenset[str],
    keep_towers: bool,
) -> dict[str, Write]:
    """Name in the merged directory -> what is written there, in the order in which it is best computed. A pure function.

    Args:
        stored: the checkpoint by its own names.
        naming: of the checkpoint.
        updates: by the model's name of the weight; one update for a matrix, one an expert for a stack.
        weights: the model's names of the dense weights that training quantised to NF4.
        tables: those of embedding tables that it quantised row by row.
        keep_towers: keep the checkpoint's names and towers; else the text model alone, under its own names.

    Raises:
        ExportError: a target of the adapter is not in the checkpoint, or has another shape.
    """
    writes: dict[str, Write] = {}
    for name, weight in stored.items():
        model = naming.of_model(name)
        if model is None and not keep_towers:
            continue
        part = expert_part(model) if model is not None else None
        stack = part.stacked if part else model
        form = "nf4" if weight.is_nf4 else "requantized" if stack in weights else "dense"
        if model in tables:
            form = "requantized rows"
        update = stack if stack in updates else None
        if update is not None:
            _refuse_other_shape(name, weight, part, updates[update])
        writes[name if keep_towers or model is None else model] = Write(
            name, model, weight.shape, weight.dtype, form, part, update
        )
    missing = sorted(updates.keys() - {write.update for write in writes.values()})
    if missing:
        raise ExportError(f"the adapter's target {missing[0]} is not in the base", "is it the base it was trained on?")
    first: dict[str, int] = {}  # the parts of a stack one after another: it is quantised as a whole, once
    for place, write in enumerate(writes.values()):
        first.setdefault(write.stack, place)
    return dict(sorted(writes.items(), key=lambda entry: first[entry[1].stack]))


def with_own_head(writes: Mapping[str, Write], naming: Naming, keep_towers: bool) -> dict[str, Write]:
    """The plan with a head beside the embedding that was the head too, for an adapter that trained them apart. A pure function.

    Args:
        writes: from ``plan_merge``, like the other two.
    """
    if any(write.model == OWN_HEAD for write in writes.values()):
        return dict(writes)
    table = next(write for write in writes.values() if table_of((write.model or "").removesuffix(".weight")) == "embedding")
    name = naming.of_checkpoint(OWN_HEAD) if keep_towers else OWN_HEAD
    return {**writes, name: replace(table, model=OWN_HEAD)}


def shapes(writes: Mapping[str, Write]) -> dict[str, Shape]:
    """What the headers of the files say."""
    return {name: Shape(write.shape, write.dtype) for name, write in writes.items()}


def update_of(write: Write, updates: Mapping[str, list[Update]], index: int) -> Update | None:
    """The update of one matrix of a tensor: the tensor itself, or the ``index``-th of a stack."""
    if write.update is None:
        return None
    of_stack = updates[write.update]
    if write.part is None:
        return of_stack[index]
    rows = write.shape[0]
    return of_stack[write.part.expert].rows(write.part.part * rows, (write.part.part + 1) * rows)


def _refuse_other_shape(name: str, weight: Stored, part: ExpertPart | None, updates: list[Update]) -> None:
    rows, columns = updates[0].shape
    if part is not None:
        expected, experts = (rows // part.parts, columns), part.expert + 1
    else:
        expected, experts = ((rows, columns) if len(weight.shape) == 2 else (len(updates), rows, columns)), 1
    if weight.shape != expected or experts > len(updates):
        raise ExportError(f"{name}: the base has shape {weight.shape}, the adapter is for {expected}", "is it another base?")
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ExportError(f"{name}: stored as {weight.dtype}, which cannot be merged into", "use the 16-bit model")
