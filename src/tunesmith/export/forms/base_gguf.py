"""A GGUF of the base as it is, in the deployed type, with the template that was trained with.

It serves two: the adapter as a GGUF of its own is applied to it (``export.lora_gguf``), and the arm ``prompt_deployed`` asks
it the best prompt, so that what a call takes is compared in one engine and one file type. For the adapter a recipe whose
model is a GGUF file has its base already, if the run writes that file's own template: an engine takes the template from the
base, and without one llama.cpp takes ChatML. The arm gets a file of the deployed type even then, by the way that the tuned one
went: another type has another speed. It is no deployed form, so nothing is held against it and no command serves it. No
importance matrix weighs its rounding; what a call takes does not depend on one, what is answered may a little.

After a training on the blocks of a file (``base: Q4_K_M``) it is that file, with the template of the run, and is deployed.

Cost: a 16-bit file of the base beside the export until the quantised one is there, and a few minutes for a billion weights.
"""

import logging
import shutil
from pathlib import Path

from tunesmith.checkpoints.gguf_write.convert import describe
from tunesmith.checkpoints.gguf_write.rewrite import rewrite_gguf
from tunesmith.checkpoints.quantized.layout import layout_of
from tunesmith.engines.base import open_base
from tunesmith.errors import ExportError
from tunesmith.export.base import write_dense
from tunesmith.export.companions import copy_companions
from tunesmith.export.forms.form import Facts, Form, Job, Operation, gguf_size
from tunesmith.export.forms.gguf import convert_16bit, quantize_step
from tunesmith.export.names import base_name
from tunesmith.export.sizes import FULL
from tunesmith.recipe import PROMPT_DEPLOYED, Recipe
from tunesmith.rundir.records.export import GgufFile

logger = logging.getLogger(__name__)


def _plan(recipe: Recipe, facts: Facts) -> list[Operation]:
    if recipe.deploys_adapter and recipe.serves_own_file:
        return []
    for_arm = PROMPT_DEPLOYED in recipe.evaluate.arms
    if not for_arm and (not recipe.export.lora_gguf or recipe.serves_own_file):
        return []
    if facts.is_4bit:
        raise ExportError(
            f"{f'the arm {PROMPT_DEPLOYED}' if for_arm else 'export.lora_gguf'}: the checkpoint lies in 4 bits, "
            "and llama.cpp's converter reads no such weights",
            "name the 16-bit model as model, or "
            + (f"leave {PROMPT_DEPLOYED} out of evaluate.arms" if for_arm else "set export.lora_gguf: false"),
        )
    kind, target = recipe.base_type, base_name(facts.name, recipe.base_type)
    if recipe.deploys_adapter:
        nbytes = gguf_size(facts, kind) if kind != "gguf" else Path(recipe.model).stat().st_size
        return [Operation(kind="base-gguf", target=target, nbytes=nbytes, write=_take_trained, record=GgufFile)]
    first = kind if kind in FULL else "F16"
    source = base_name(facts.name, first)
    steps = [
        Operation(
            kind="base-gguf",
            target=source,
            nbytes=gguf_size(facts, first),
            file_type=first,
            until=None if kind in FULL else target,
            write=_convert_base,
            record=GgufFile,
        )
    ]
    if kind not in FULL:
        size = gguf_size(facts, kind)
        steps.append(
            Operation(
                kind="base-gguf",
                target=target,
                sources=(source,),
                nbytes=size,
                file_type=kind,
                write=quantize_step,
                record=GgufFile,
            )
        )
    return steps


def _convert_base(job: Job, step: Operation) -> GgufFile:
    logger.info(f"export: converting the base to GGUF ({step.file_type})")
    view = job.staged / ".base" / Path(job.recipe.model).name  # the name that the converter puts into the file
    view.mkdir(parents=True)
    try:
        copy_companions(job.base, view, keep_towers=True, template=job.renderer.template, stops=job.renderer.stop_ids)
        weights = [*job.base.glob("*.safetensors"), *job.base.glob("*.safetensors.index.json")]
        if layout_of(job.base).packed:  # in a form that the converter does not know, or reads in its own way
            write_dense(job.base, view)
            weights = []
        for file in (*weights, *job.base.glob("README.md")):
            (view / file.name).symlink_to(file.resolve())
        return convert_16bit(view, job.staged / step.target, step.file_type)
    finally:
        shutil.rmtree(view.parent)


def _take_trained(job: Job, step: Operation) -> GgufFile:
    """The file that was trained on, with the template of the run; no block of it changes."""
    blocks = open_base(job.recipe).blocks
    assert blocks is not None
    rewrite_gguf(blocks, job.staged / step.target, job.renderer.template)
    return describe(job.staged / step.target)


BASE_GGUF = Form(name="base_gguf", plan=_plan, commands=lambda job: {}, opened=lambda written: [])
