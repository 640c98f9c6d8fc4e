"""The stage export: every form of the recipe's ``export`` section, all of them or none.

The rooms meet here: the training's rows and its loss on dev go to the job as functions, and ``export/`` does the rest.
"""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.checkpoints.gguf_write.convert import describe
from tunesmith.engines.form import ExportedForm, gguf_form
from tunesmith.errors import RunError
from tunesmith.export.context import differences, served_context
from tunesmith.export.facts import read_facts
from tunesmith.export.forms.form import ROUNDING, Facts, Job, Operation, Written, peak
from tunesmith.export.forms.table import FORMS
from tunesmith.export.gguf.foretold import foretold
from tunesmith.export.gguf.updates import warn_if_lost
from tunesmith.export.job import build, plan_export, plan_record, report
from tunesmith.export.sizes import FULL
from tunesmith.models.adapter import read_lora
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.disk import Saving
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.adapter import has_patterns, read_adapter_config
from tunesmith.recipe.run import plain_type
from tunesmith.rundir import NEXT, RunDir, swap_in
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.export import Export, ExportPlan, Merge
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import progress
from tunesmith.train.documents import Documents
from tunesmith.train.scored_rows import packs_of, scored_rows
from tunesmith.train.sensitivity import measure_sensitivity
from tunesmith.train.step import mean_loss, step_packs

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Write every form of the recipe's ``export`` section; of a GGUF that was chosen from several none, since it is its own.

    Raises:
        ExportError: a form that cannot be written, too little room on the disk, or a step that failed.
    """
    model = tuned_model(run, recipe)
    if model.gguf is not None:
        staged = run.export / NEXT
        shutil.rmtree(staged, ignore_errors=True)  # of an export of another one that did not end
        staged.mkdir(parents=True)
        Export(files={}).write(staged / "export.json")
        swap_in(run.export, session.parts)
        logger.info(f"export: {model.gguf} was chosen, a GGUF that is deployed as it lies")
        return
    job = job_of(run, recipe)
    steps = planned(run, recipe, job.lora)
    build(job, steps, model.answering_key)
    swap_in(run.export, session.parts)
    report(job, steps)


def dry_run(run: RunDir) -> list[Operation]:
    """The steps of an export that nobody makes; needs no training, but what is brought."""
    recipe = run.recipe()
    return planned(run, recipe, job_of(run, recipe).lora if recipe.tuned else recipe.lora)


def plan(run: RunDir) -> ExportPlan:
    """The same with sizes and the room on the disk."""
    return plan_record(dry_run(run), run.export)


def planned(run: RunDir, recipe: Recipe, lora: Lora | None) -> list[Operation]:
    """The steps of the export, and aloud what llama.cpp will compute otherwise."""
    base = tuned_model(run, recipe).here if recipe.tuned else base_of(run, recipe)
    context, why = context_of(run, recipe)
    logger.info(f"export: {context:,} tokens of context ({why})")
    for line in differences(base.directory, context):
        logger.warning(f"export: llama.cpp computes this model differently: {line}")
    given = tuned_model(run, recipe).adapter if recipe.tuned else recipe.train.from_adapter
    return plan_export(recipe, read_facts(recipe, lora, base.directory, base.renderer.template, given))


def check_export(recipe: Recipe, base: Path) -> list[Operation]:
    """Refuse a form that cannot be written of a base, or an adapter that does not fit it, before anything is trained.

    A file that would take the training back is warned of.

    Returns:
        The steps of the export.

    Raises:
        ExportError: llama.cpp's converter does not know the architecture, or a form that cannot be written.
        TrainingError: the adapter's targets are not in the model.
    """
    facts = read_facts(recipe, recipe.lora, base, "", recipe.train.from_adapter)
    steps = plan_export(recipe, facts)
    _warn_of_lost(recipe, facts, base)
    return steps


def _warn_of_lost(recipe: Recipe, facts: Facts, base: Path) -> None:
    """Warn of types that would take the training back; none does where other weights than the base's files are merged into."""
    merges_nf4 = recipe.base == "nf4" and recipe.export.merge_into == "trained"
    if merges_nf4 or recipe.deploys_adapter:
        return
    trained = recipe.export.gguf[-1:] if recipe.train.qat else ()
    for kind in recipe.export.gguf:
        if kind not in (*FULL, *trained) and plain_type(kind) == kind:
            warn_if_lost(f"export.gguf: {kind}", "is going to be", foretold(facts, base, kind))


def files_of(steps: Sequence[Operation]) -> tuple[dict[str, int], list[Saving]]:
    """What the steps have on the disk at a time, by what it is, and ways to write less."""
    stay = {step.target: step.nbytes for step in steps if step.until is None and not step.text}
    beside = peak(steps) - sum(stay.values())
    kept = [step for step in steps if step.kind in ("convert", "quantize") and step.until is None]
    savings = [Saving(setting=f"export.gguf without {step.file_type}", nbytes=step.nbytes) for step in kept[:-1]]
    if lora := [step for step in steps if step.kind in ("lora-gguf", "base-gguf") and step.until is None]:
        savings.append(Saving(setting="export.lora_gguf: false", nbytes=sum(step.nbytes for step in lora)))
    return {**stay, **({"what the export makes others from": beside} if beside > 0 else {})}, savings


def context_of(run: RunDir, recipe: Recipe) -> tuple[int, str]:
    """Tokens of context that a served model reserves, and where the number comes from.

    Raises:
        ExportError: the recipe asks for more than the model takes.
    """
    rendered = Rendered.read(run.rendered_file) if run.rendered_file.exists() else None
    longest, budget = (None, 0) if rendered is None else (rendered.longest, rendered.max_new_tokens)
    return served_context(base_of(run, recipe).directory, recipe.export.num_ctx, longest, budget)


def job_of(run: RunDir, recipe: Recipe) -> Job:
    """What the steps of an export work with."""
    model = tuned_model(run, recipe)
    base = model.here
    context, _ = context_of(run, recipe)
    training = None if recipe.tuned else Training.read(run.training_file)

    def dev_loss(model: PreTrainedModel) -> float:
        dev = Documents.open(run.tokens("dev"))
        with attention(model, PACKED):
            return mean_loss(model, step_packs(dev, [tuple(range(len(dev)))], recipe.train.max_length))

    return Job(
        run=run,
        recipe=recipe,
        base=base.directory,
        renderer=base.renderer,
        adapter=model.adapter or run.adapter,
        lora=None if model.adapter is None else read_lora(model.adapter),
        ranks_differ=model.adapter is not None and has_patterns(read_adapter_config(model.adapter)),
        staged=run.export / NEXT,
        context=context,
        differs=differences(base.directory, context),
        sensitivity=partial(_sensitivity, run, recipe),
        mixed=base.mixed,
        train_rows=lambda: Documents.open(run.tokens("train")),
        dev_loss=dev_loss,
        adapter_loss=training and training.best_dev_loss,
        best_step=training and training.best_step,
        steps=training and training.steps,
    )


def _sensitivity(run: RunDir, recipe: Recipe, model: PreTrainedModel) -> dict[str, Sensitivity]:
    """What the loss on train rows says of a model's layers."""
    train = Documents.open(run.tokens("train"))
    packs = packs_of(train, scored_rows(train, recipe.seed))
    with progress("scores of tensors", len(packs)) as bar:
        return measure_sensitivity(model, packs, recipe.seed, lambda _: bar.advance())


def exported_forms(run: RunDir, recipe: Recipe) -> list[ExportedForm]:
    """The forms that an export has written, to be opened.

    Raises:
        RunError: one of them is gone.
    """
    if (brought := tuned_model(run, recipe).gguf) is not None:
        return [brought_form(brought)]
    types = tuple(Export.read(run.export / "export.json").files)
    merge, compute = Merge.read(run.export / "merge.json"), base_of(run, recipe).compute
    written = Written(run=run, recipe=recipe, compute=compute, merge=merge, types=types)
    opened = [one for form in FORMS for one in form.opened(written)]
    for file in [file for form in opened for file in form.files]:
        if not file.exists():
            raise RunError(f"{file}: part of the export, and not there", f"run: tunesmith export {run.path}")
    return opened


def brought_form(file: Path) -> ExportedForm:
    """A GGUF that was brought, to be opened."""
    types = describe(file).types.keys() - {"F32"}
    return gguf_form(file.name, file, ROUNDING.get(next(iter(types))) if len(types) == 1 else None)
