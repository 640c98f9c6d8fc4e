"""Merge the adapter into the base that it was trained on, tensor by tensor, straight from the files.

``W + scale B A`` (or DoRA's weight) is added up in fp32 and rounded once to the dtype of the checkpoint. No model is built:
rows are read, changed and written, and the peak is 2.0 times the largest tensor, 2.3 times where it is quantised again (a
weight of 134 MB, measured), whatever the size of the model.

**Which base.** An adapter corrects the weights that it was trained with. Trained on NF4 it has learned to undo some of their
rounding; added to the 16-bit original it corrects errors that are not there. So by default each weight that training held in
NF4 is quantised and dequantised here by the same kernels (``export/base.py``), and the merged model computes what was trained,
to 16-bit rounding. QLoRA's habit of merging into the original is at hand as ``into="original"``; a run measures both on dev.

**Rows of new tokens** take the place of those of the base's tables, which has rows for them (``checkpoints/grow.py``), and
whole tables (``lora.modules_to_save``) that of the tables. Where head and embedding were one and an adapter of another tool
trained them apart, the merged model has a head of its own.

An update that is zero, or a target that the base does not have, is an error: an adapter that does nothing is the commonest
failure of exports. Experts are judged as a stack, since one that no token was sent to has learned nothing.

Refused: PEFT's ``merge_and_unload``, which holds the dense model, and rounds the update to 16 bits before it is added.

Shape suffixes: P some of the rows, I in_features, O out_features, E experts, R rank, N rows, D hidden size.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from tunesmith.checkpoints.hf import HEADS, read_config
from tunesmith.checkpoints.names import naming
from tunesmith.checkpoints.shards import refuse_full_disk, write_model
from tunesmith.errors import ExportError, ModelError
from tunesmith.export.base import Base, QuantizedWeights, read_stored
from tunesmith.export.companions import copy_companions
from tunesmith.export.plan import Stored, Update, Write, plan_merge, shapes, update_of, with_own_head
from tunesmith.families import FAMILIES
from tunesmith.layers.dora import dora_weight_OI
from tunesmith.models.adapter import (
    PREFIX,
    ROWS,
    read_adapter,
    read_adapter_config,
    read_experts,
    read_lora,
    read_new_rows,
    read_whole_tables,
    splits_tables,
)
from tunesmith.models.identity import refuse_other_base
from tunesmith.models.nf4_load import shorten
from tunesmith.recipe.adapter import lora_of
from tunesmith.recipe.tables import table_of
from tunesmith.rundir import atomic_directory
from tunesmith.rundir.records.export import Merge
from tunesmith.tracking import progress


class RowsOf(NamedTuple):
    """What takes the place of rows of a table.

    Attributes:
        first: number of the first.
        rows_ND: one below another.
        whole: they are all of the table.
    """

    first: int
    rows_ND: torch.Tensor
    whole: bool = False


def merge(
    base: Path,
    adapter: Path,
    target: Path,
    quantized: QuantizedWeights | None = None,
    into: Literal["trained", "original"] = "trained",
    towers: Literal["drop", "keep"] = "drop",
    template: str | None = None,
    stop_ids: tuple[int, ...] | None = None,
) -> Merge:
    """Write a merged Hugging Face directory.

    Args:
        base: directory of the base model (safetensors).
        adapter: PEFT adapter directory.
        target: directory to write, whole or not at all.
        quantized: what training quantised to NF4 as it loaded ``base`` (``quantized_in_training``); None for nothing. What lies
            in NF4 in the checkpoint is known without.
        into: ``trained`` merges into the weights as training held them, ``original`` into those of the checkpoint.
        towers: of a multimodal checkpoint: kept with its names and configuration, or dropped, which leaves a text model.
        template: the chat template to write; the base's own when None.
        stop_ids: tokens that end an answer, for ``generation_config.json``; only what the base names when None.

    Raises:
        ExportError: the adapter does not fit the base, or changes nothing; too little room on the disk; ``original`` asked
            of a 4-bit checkpoint.
        ModelError: base or adapter cannot be read, or the adapter was trained on another base.
    """
    refuse_other_base(adapter, base)
    stored = read_stored(base)
    if into == "original":
        _refuse_4bit(base, stored)
    quantized = quantized if quantized is not None and into == "trained" else QuantizedWeights()
    family = FAMILIES.get(read_config(base)[0].model_type)
    updates = read_updates(adapter, transposed=bool(family and family.experts and family.experts.layout == "EIO"))
    names = naming(base)
    rows, apart = _rows_by_weight(base, adapter), splits_tables(adapter, base)
    writes = plan_merge(stored, names, updates, quantized.weights, quantized.tables, towers == "keep")
    if apart:
        writes = with_own_head(writes, names, towers == "keep")
    _refuse_other_tables(writes, rows)
    described = shapes(writes)
    nbytes = sum(tensor.nbytes for tensor in described.values())
    refuse_full_disk(next(parent for parent in target.absolute().parents if parent.exists()), nbytes)
    merging = _Merging(Base(base, stored, writes.values(), quantized.mixed), writes, updates, rows)
    with atomic_directory(target) as directory, progress("merging", len(writes)) as bar:

        def pieces(name: str) -> Iterator[torch.Tensor]:
            yield from merging.pieces(name)
            bar.advance()

        write_model(directory, described, pieces)
        copy_companions(base, directory, towers == "keep", template, stop_ids, own_head=apart)
    sizes: Counter[torch.dtype] = Counter()
    for tensor in described.values():
        sizes[tensor.dtype] += tensor.nbytes
    dtype = str(sizes.most_common(1)[0][0]).removeprefix("torch.")
    dequantized = {write.stack for write in writes.values() if write.form != "dense"}
    return Merge(
        into=into,
        dtype=dtype,
        nbytes=nbytes,
        targets=len(updates),
        dequantized=len(dequantized),
        new_tokens=max((len(entry.rows_ND) for entry in rows.values() if not entry.whole), default=0),
        tables=tuple(sorted(write.source for write in writes.values() if write.model in rows and rows[write.model].whole)),
    )


def read_updates(adapter: Path, transposed: bool = False) -> dict[str, list[Update]]:
    """What an adapter adds, by the model's name of the weight: one update for a matrix, one an expert for a stack.

    Args:
        transposed: stacks of experts lie as (E, I, O).

    Raises:
        ModelError: no adapter there, one that cannot be read, or a layer without both factors.
        ExportError: factors that are zero, so that the weight would stay as it is.
    """
    state, lora, config = read_adapter(adapter), read_lora(adapter), read_adapter_config(adapter)
    experts = read_experts(adapter, state)
    updates: dict[str, list[Update]] = {}
    for name, (A_ERI, B_EOR) in experts.items():
        left, right = (A_ERI.transpose(1, 2), B_EOR.transpose(1, 2)) if transposed else (B_EOR, A_ERI)
        updates[name] = [Update(lora.scale * left[e].float(), right[e].float()) for e in range(len(left))]
    modules = tuple({f"{PREFIX}{name.rpartition('.')[0]}." for name in experts})
    others = {f"{PREFIX}{name}.weight" for name in read_whole_tables(adapter, state)}
    others |= {key for key in state if key.startswith(modules) or key.endswith(ROWS)}
    for layer in sorted({key.rsplit(".lora_", 1)[0] for key in state.keys() - others}):
        A_RI, B_OR = (state.get(f"{layer}.lora_{side}.weight") for side in "AB")
        if A_RI is None or B_OR is None:
            raise ModelError(f"{adapter}: {layer} lacks lora_A.weight or lora_B.weight", "is it a LoRA of linear layers?")
        if A_RI.ndim != 2 or B_OR.ndim != 2 or len(A_RI) != B_OR.shape[1]:
            raise ModelError(f"{adapter}: {layer} has A {tuple(A_RI.shape)} and B {tuple(B_OR.shape)}", "get the file again")
        scale = lora_of(layer.removeprefix(PREFIX), lora, config).scale
        update = Update(scale * B_OR.float(), A_RI.float(), state.get(f"{layer}.lora_magnitude_vector"))
        updates[f"{layer.removeprefix(PREFIX)}.weight"] = [update]
    if zero := [name for name, parts in updates.items() if not any(map(_adds, parts))]:
        raise ExportError(
            f"{zero[0]}: merging changes nothing: lora_A or lora_B is zero in {len(zero)} of {len(updates)} weights "
            f"({shorten(zero)})",
            "train it",
        )
    return updates


def _adds(update: Update) -> bool:
    """Whether there is something to merge: both factors, or DoRA's length, which alone may change a weight."""
    return update.length_O is not None or bool(update.left_OR.any() and update.right_RI.any())


class _Merging:
    """Computes the tensors of the merged directory a piece at a time, and sees to it that every target changes."""

    def __init__(self, base: Base, writes: dict[str, Write], updates: dict[str, list[Update]], new_rows: Mapping[str, RowsOf]):
        self._base, self._writes, self._updates, self._new_rows = base, writes, updates, new_rows
        self._left = Counter(write.update for write in writes.values() if write.update is not None)
        self._changed: set[str] = set()

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Consecutive rows of a tensor, merged, in its dtype.

        Raises:
            ExportError: merging changes nothing: the update is zero, or below the rounding of the weights.
        """
        write = self._writes[name]
        for number, first, rows_PI in self._base.rows(write):
            plain_PI = rows_PI.to(write.dtype)
            update = update_of(write, self._updates, number)
            if update is None:
                yield _with_new_rows(plain_PI, first, self._new_rows.get(write.model or ""))
                continue
            merged_PI = _merged(rows_PI, update.rows(first, first + len(rows_PI))).to(write.dtype)
            assert write.update is not None
            if write.update not in self._changed and not _same(merged_PI, plain_PI):
                self._changed.add(write.update)
            yield merged_PI
        if write.update is not None:
            self._left[write.update] -= 1
            if not self._left[write.update] and write.update not in self._changed:
                raise ExportError(
                    f"{write.update}: merging changes nothing (the update is zero or below the dtype's rounding)", "train it"
                )


def _rows_by_weight(base: Path, adapter: Path) -> dict[str, RowsOf]:
    """Trained rows by the model's name of the weight; a tied head in the files too gets those of the embedding."""
    state = read_adapter(adapter)
    rows = {f"{name}.weight": RowsOf(*entry) for name, entry in read_new_rows(adapter, state).items()}
    rows |= {f"{name}.weight": RowsOf(0, table, whole=True) for name, table in read_whole_tables(adapter, state).items()}
    if len(rows) == 1 and read_config(base)[0].tie_word_embeddings and not splits_tables(adapter, base):
        rows |= dict.fromkeys(HEADS, next(iter(rows.values())))
    return rows


def _refuse_other_tables(writes: Mapping[str, Write], rows: Mapping[str, RowsOf]) -> None:
    for write in writes.values():
        entry = rows.get(write.model or "")
        if entry is None:
            continue
        first, rows_ND, whole = entry
        fits = write.shape == rows_ND.shape if whole else write.shape[0] >= first + len(rows_ND)
        if len(write.shape) != 2 or write.shape[1] != rows_ND.shape[1] or not fits:
            raise ExportError(
                f"{write.source}: the base has shape {write.shape}, the adapter has rows {first} to "
                f"{first + len(rows_ND) - 1} of {rows_ND.shape[1]} columns",
                "merge into the base that it was trained on: the recipe's, with its chat.new_tokens",
            )
    there = {write.model for write in writes.values()}
    if missing := [name for name in rows if name not in there and table_of(name.removesuffix(".weight")) == "embedding"]:
        raise ExportError(f"the adapter's table {missing[0]} is not in the base", "is it the base it was trained on?")


def _with_new_rows(plain_PI: torch.Tensor, first: int, new_rows: RowsOf | None) -> torch.Tensor:
    """Rows from ``first`` on, those of new tokens in the place of what the base has there."""
    if new_rows is None:
        return plain_PI
    begin, rows_ND, _ = new_rows
    low, high = max(begin, first), min(begin + len(rows_ND), first + len(plain_PI))
    if low >= high:
        return plain_PI
    written_PI = plain_PI.clone()
    written_PI[low - first : high - first] = rows_ND[low - begin : high - begin].to(plain_PI.dtype)
    return written_PI


def _merged(rows_PI: torch.Tensor, update: Update) -> torch.Tensor:
    """Merged rows, fp32."""
    if update.length_O is None:
        return torch.addmm(rows_PI.float(), update.left_OR, update.right_RI)
    return dora_weight_OI(rows_PI, update.right_RI, update.left_OR, update.length_O, 1.0)


def _same(merged_PI: torch.Tensor, plain_PI: torch.Tensor) -> bool:
    """Whether nothing changed; DoRA's zero update is one to rounding alone."""
    return torch.allclose(merged_PI.float(), plain_PI.float(), rtol=1e-6, atol=0.0)


def _refuse_4bit(base: Path, stored: dict[str, Stored]) -> None:
    four_bit = [name for name, weight in stored.items() if weight.is_nf4]
    if four_bit:
        raise ExportError(
            f"{base}: {len(four_bit)} weights lie in 4 bits, first {four_bit[0]}; there is no 16-bit original to merge into",
            "export.merge_into: trained, or name the 16-bit model as model",
        )
