"""The merged model as a Hugging Face directory, and what the choice of the base weights means on dev.

An adapter that was trained on NF4 can be merged into the weights that it was trained on, dequantised, or into the 16-bit
original. Which is better is a question with an answer: the dev loss of both, beside that of the adapter as it was trained.
The form that is written is read back from the disk and measured; of the other, the original with the adapter on it computes
the same as a merge, and the dequantised one is merged into a directory that is removed again. A dense model that fits
neither the GPU nor the machine's memory is not measured, and the line says so.
"""

import dataclasses
import logging
import math
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import torch

from tunesmith.engines.form import ExportedForm, directory_form
from tunesmith.errors import ExportError
from tunesmith.export.base import quantized_in_training, read_stored
from tunesmith.export.card import card_of, write_card
from tunesmith.export.companions import copy_companions
from tunesmith.export.forms.form import TEXT, Facts, Form, Job, Operation, Written
from tunesmith.export.merge import merge
from tunesmith.models.adapter import load_adapted
from tunesmith.models.device import device_with_room
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_model
from tunesmith.models.precision import precision
from tunesmith.recipe import Recipe
from tunesmith.rundir import atomic_directory
from tunesmith.rundir.records.export import Command, Merge, MergeLosses

logger = logging.getLogger(__name__)


def _plan(recipe: Recipe, facts: Facts) -> list[Operation]:
    if facts.lora is None:
        copy = Operation(kind="copy", target="merged", nbytes=facts.merged, write=copy_brought, record=Merge)
        measure = Operation(
            kind="measure", target="merge.json", sources=("merged",), nbytes=TEXT, write=measure_merge, record=Merge
        )
        return [copy, measure]
    both = facts.merged if recipe.base == "nf4" and recipe.export.merge_into == "original" else 0
    return [
        Operation(kind="merge", target="merged", nbytes=facts.merged, write=merge_adapter, record=Merge),
        Operation(
            kind="measure",
            target="merge.json",
            sources=("merged",),
            nbytes=TEXT,
            scratch=both,
            write=measure_merge,
            record=Merge,
        ),
    ]


def merge_adapter(job: Job, step: Operation) -> Merge:
    """Write ``merged/``, with a card from which llama.cpp's converter takes the name.

    Raises:
        ExportError: as ``export.merge.merge``.
    """
    recipe, target = job.recipe, job.staged / step.target
    quantized = quantized_in_training(job.base, recipe.base == "nf4", recipe.per_layer_embeddings == "nf4", job.mixed)
    stops, template = tuple(job.renderer.stop_ids), job.renderer.template
    into, towers = recipe.export.merge_into, recipe.towers
    merged = merge(job.base, job.adapter, target, quantized, into, towers, template, stop_ids=stops)
    base = "original" if merged.into == "original" else "dequantised base" if merged.dequantized else "base"
    if recipe.base_head == "int8":
        merged = dataclasses.replace(merged, head="original")
    head = "; the head is the original one, training had it in 8 bits" if merged.head == "original" else ""
    tokens = f"; {merged.new_tokens} new tokens in its tables" if merged.new_tokens else ""
    tables = f"; trained whole: {', '.join(merged.tables)}" if merged.tables else ""
    logger.info(f"export: merged {merged.targets} weights into the {base}, {merged.dtype}{tokens}{tables}{head}")
    write_card(target, card_of(job, merged))
    return merged


def copy_brought(job: Job, step: Operation) -> Merge:
    """Write ``merged/`` of a whole model that was brought: the same weights, by a link where the file system has one.

    Raises:
        ExportError: its weights lie in 4 bits, of which no GGUF is made.
    """
    target, stored = job.staged / step.target, read_stored(job.base)
    if any(weight.is_nf4 for weight in stored.values()):
        raise ExportError(f"{job.base}: its weights lie in 4 bits, of which no GGUF is made", "bring the 16-bit model")
    with atomic_directory(target) as directory:
        for file in sorted({weight.file for weight in stored.values()} | set(job.base.glob("*.safetensors.index.json"))):
            _link_or_copy(file, directory / file.name)
        renderer = job.renderer
        copy_companions(job.base, directory, True, renderer.template, tuple(renderer.stop_ids))
    sizes: Counter[torch.dtype] = Counter()
    for weight in stored.values():
        sizes[weight.dtype] += math.prod(weight.shape) * weight.dtype.itemsize
    dtype = str(sizes.most_common(1)[0][0]).removeprefix("torch.")
    merged = Merge(into="original", dtype=dtype, nbytes=sizes.total(), targets=0, dequantized=0)
    write_card(target, card_of(job, merged))
    return merged


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy(source, target)


def measure_merge(job: Job, step: Operation) -> Merge:
    """Write ``merge.json``: what was merged, and with ``base: nf4`` the dev loss of both merges."""
    merged = job.result("merged", Merge)
    assert merged is not None, "the merge comes first"
    if job.recipe.base == "nf4" and job.lora is not None:
        losses = _dev_losses(job, merged)
        summary = _summary(losses, "32-bit" if merged.dtype == "float32" else "16-bit")
        merged = dataclasses.replace(merged, dev_loss=losses, summary=summary)
        logger.info(f"export: {summary}")
    merged.write(job.staged / step.target)
    return merged


def _dev_losses(job: Job, merged: Merge) -> MergeLosses:
    """Mean dev loss in nats a supervised token: merged both ways, and the adapter as it was trained; None: not measured."""
    recipe = job.recipe
    _, compute = precision(recipe.base, recipe.train.compute, job.base)
    device = device_with_room(merged.nbytes // (4 if merged.dtype == "float32" else 2) * (4 if compute == "fp32" else 2))
    trained = original = None
    if device is not None:
        written = _dev_loss(job, job.staged / "merged", compute, device)
        if merged.into == "original":
            original = written
            with tempfile.TemporaryDirectory(dir=job.staged, prefix=".trained-") as temporary:
                other = Path(temporary) / "merged"
                quantized = quantized_in_training(job.base, True, recipe.per_layer_embeddings == "nf4", job.mixed)
                merge(job.base, job.adapter, other, quantized, "trained", "drop")
                trained = _dev_loss(job, other, compute, device)
        else:
            trained = written
            if not any(weight.is_nf4 for weight in read_stored(job.base).values()):
                original = _dev_loss(job, job.base, compute, device, job.adapter)
    return MergeLosses(trained=trained, original=original, adapter=job.adapter_loss)


def _dev_loss(job: Job, directory: Path, compute: str, device: torch.device, adapter: Path | None = None) -> float:
    model = load_model(directory, compute, None, device)
    if adapter is not None:
        load_adapted(model, adapter)
    fuse(model)
    return job.dev_loss(model)


def _summary(losses: MergeLosses, width: str) -> str:
    def number(loss: float | None) -> str:
        return "not measured" if loss is None else f"{loss:.4f}"

    return (
        f"dev loss merged into the dequantised base {number(losses.trained)}, into the {width} original "
        f"{number(losses.original)}, adapter unmerged {number(losses.adapter)}"
    )


def _commands(job: Job) -> dict[str, Command]:
    argv = ("vllm", "serve", "export/merged", "--served-model-name", job.name, "--max-model-len", str(job.context))
    return {"vllm": Command(engine="vLLM", of="merge", argvs=(argv,))}


def _opened(written: Written) -> list[ExportedForm]:
    recipe, merged = written.recipe, written.merge
    differs = merged.into == "original" and "nf4" in (recipe.base, recipe.per_layer_embeddings)
    differs = differs or merged.head == "original" or recipe.train.qat  # it merges what was not rounded
    exact = merged.dtype == "float32" and written.compute == "fp32"
    rounding = None if differs else "fp32" if exact else "fp16"
    return [directory_form("merged", written.run.merged, rounding, recipe.evaluate.batch_size)]


MERGED = Form(name="merged", plan=_plan, commands=_commands, opened=_opened)
