"""The stage export: every form of the recipe's ``export`` section, all of them or none.

The rooms meet here: the training's rows and its loss on dev go to the job as functions, and ``export/`` does the rest.
"""

import logging
import shutil
from typing import TYPE_CHECKING

from tunesmith.errors import RunError
from tunesmith.pipeline.stage import renderer, stage
from tunesmith.recipe import Recipe
from tunesmith.rundir import NEXT, RunDir, fingerprint, forget_journal, read_json, swap_in
from tunesmith.rundir.records.export import Export, Merge
from tunesmith.rundir.records.training import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.engines.form import ExportedForm
    from tunesmith.export.forms.form import Job, Operation

logger = logging.getLogger(__name__)


def export(run: RunDir, dry_run: bool = False) -> "list[Operation]":
    """Write every form of the recipe's ``export`` section, or with ``dry_run`` only say what would be written.

    Returns:
        The steps; none where the export is up to date.

    Raises:
        RunError: nothing was trained yet (a dry run needs no training).
        ExportError: a form that cannot be written, too little room on the disk, or a step that failed.
    """
    from tunesmith.export.job import build, report

    recipe = run.recipe()
    if dry_run:
        return planned(run, recipe)
    run.recover()
    trained = run.key_of("train")
    key = fingerprint(trained, recipe.export.model_dump(), recipe.towers)
    steps: list[Operation] = []
    with stage(run, "export", key) as needed:
        if needed:
            steps, job = planned(run, recipe), job_of(run, recipe)
            build(job, steps, trained)
            swap_in(run.export, key)
            report(job, steps)
        else:
            shutil.rmtree(run.export / NEXT, ignore_errors=True)  # of settings that the recipe has left again
    forget_journal(run.export)
    return steps


def planned(run: RunDir, recipe: Recipe) -> "list[Operation]":
    """The steps of the export, and aloud what llama.cpp will compute otherwise."""
    from tunesmith.export.context import differences
    from tunesmith.export.facts import read_facts
    from tunesmith.export.job import plan_export

    base, written = renderer(recipe)
    context, why = context_of(run, recipe)
    logger.info(f"export: {context:,} tokens of context ({why})")
    for line in differences(base, context):
        logger.warning(f"export: llama.cpp computes this model differently: {line}")
    return plan_export(recipe, read_facts(recipe, recipe.lora, base, written.template))


def context_of(run: RunDir, recipe: Recipe) -> tuple[int, str]:
    """Tokens of context that a served model reserves, and where the number comes from.

    Raises:
        ExportError: the recipe asks for more than the model takes.
    """
    from tunesmith.export.context import served_context

    rendered = run.data / "rendered.json"
    facts = read_json(rendered) if rendered.exists() else {"longest": None, "max_new_tokens": 0}
    return served_context(renderer(recipe)[0], recipe.export.num_ctx, facts["longest"], facts["max_new_tokens"])


def job_of(run: RunDir, recipe: Recipe) -> "Job":
    """What the steps of an export work with."""
    from tunesmith.export.context import differences
    from tunesmith.export.forms.form import Job
    from tunesmith.models.adapter import read_lora
    from tunesmith.models.attention import PACKED
    from tunesmith.models.load import attention
    from tunesmith.train.documents import Documents
    from tunesmith.train.loop import mean_loss, step_packs

    base, written = renderer(recipe)
    context, _ = context_of(run, recipe)
    training = Training.read(run.training_file)

    def dev_loss(model: "PreTrainedModel") -> float:
        dev = Documents.open(run.tokens("dev"))
        with attention(model, PACKED):
            return mean_loss(model, step_packs(dev, [tuple(range(len(dev)))], recipe.train.max_length))

    return Job(
        run=run,
        recipe=recipe,
        base=base,
        renderer=written,
        lora=read_lora(run.adapter),
        staged=run.export / NEXT,
        context=context,
        differs=differences(base, context),
        train_rows=lambda: Documents.open(run.tokens("train")),
        dev_loss=dev_loss,
        adapter_loss=training.best_dev_loss,
        best_step=training.best_step,
        steps=training.steps,
    )


def exported_forms(run: RunDir, recipe: Recipe) -> "list[ExportedForm]":
    """The forms that an export has written, to be opened.

    Raises:
        RunError: one of them is gone.
    """
    from tunesmith.export.forms.form import Written
    from tunesmith.export.forms.table import FORMS
    from tunesmith.models.precision import precision

    _, compute = precision(recipe.base, recipe.train.compute, renderer(recipe)[0])
    types = tuple(Export.read(run.export / "export.json").files)
    written = Written(run=run, recipe=recipe, compute=compute, merge=Merge.read(run.export / "merge.json"), types=types)
    opened = [one for form in FORMS for one in form.opened(written)]
    for file in [file for form in opened for file in form.files]:
        if not file.exists():
            raise RunError(f"{file}: part of the export, and not there", f"run: tunesmith export {run.path}")
    return opened
