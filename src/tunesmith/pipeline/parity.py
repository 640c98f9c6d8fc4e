"""The stage parity: every form that an export wrote, held against what was trained.

The rooms meet here: the export says which forms there are, the evaluation asks and compares answers to dev rows, ``parity/``
does the rest. The sealed test part is not read. Dev rows are asked of the form that deploys, and of the adapter on its base,
which is what ``serve`` takes: llama.cpp answers them one after another, a form that computes what was trained needs no such
look, and of another quantised one it decides nothing.

Shape suffixes: N rows (positions of all prompts), V vocabulary.
"""

import logging
import shutil

from tunesmith import hardware
from tunesmith.checkpoints.facts import base_facts
from tunesmith.evaluate.prompts import tuned
from tunesmith.export.names import LORA, deployed_form
from tunesmith.parity.measure import measure_form
from tunesmith.parity.reference import Trained, choose_place, run_reference
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.dev_task import dev_task, spread, text_rows
from tunesmith.pipeline.export import context_of, exported_forms
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.tuned_model import TunedModel, tuned_model
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.export import Merge
from tunesmith.rundir.records.parity import FormParity, Parity, ParityMetric

logger = logging.getLogger(__name__)


DEV_PROMPTS = 12  # beside the fixed ones: the figures are means over some 500 positions, enough for 1 in 100
DEV_ROWS = 32  # for the metric: every form answers them, enough to see a form that is broken
SCRATCH = ".parity"


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Compare every exported form with the training stack; writes ``export/parity.json``.

    Raises:
        RunError: a file of the export is gone.
        MissingPackage: llama.cpp is not installed.
    """
    result = measured(run, recipe)
    result.write(run.export / "parity.json")
    for form in result.forms:
        logger.info(f"parity: {form.form}: {form.state}{f': {form.reason}' if form.reason else ''}")


def measured(run: RunDir, recipe: Recipe) -> Parity:
    """Every exported form, beside what was trained."""
    model = tuned_model(run, recipe)
    base = model.here
    whole = model.adapter is None
    trained = Trained(recipe=recipe, base=base, adapter=model.adapter, untuned=base_of(run, recipe) if whole else None)
    forms = exported_forms(run, recipe)
    place = choose_place(trained, _weights(run, model))
    answerable = dev_task(run, recipe, DEV_ROWS)
    task, no_task = (None, answerable) if isinstance(answerable, str) else (answerable, None)
    dev_prompts = {row.id: tuned(recipe, row) for row in spread(text_rows(run), DEV_PROMPTS)}
    context, scratch = context_of(run, recipe)[0], run.export / SCRATCH
    deployed = deployed_form(recipe) if model.gguf is None else model.gguf.name
    elsewhere = f"the dev rows are asked of the form that deploys, {deployed}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        reference = run_reference(trained, dev_prompts, place, task, scratch)
        entries: list[FormParity] = []
        for form in forms:
            hardware.release_freed_memory()
            hardware.begin_part()  # what was asked before is gone: its peak and that of this form never meet
            its_task, reason = (task, no_task) if form.name in (deployed, LORA) else (None, no_task or elsewhere)
            entries.append(measure_form(form, reference, base.renderer.tokenizer, place, its_task, context, reason))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    metric = ParityMetric(reason=no_task)
    if task is not None and reference.answers is not None:
        metric = ParityMetric(name=task.metric, n=task.n, score=task.score(reference.answers), margin=task.margin)
    return Parity(
        deployed=deployed,
        arithmetic=place.arithmetic,
        prompts=tuple(prompt.name for prompt in reference.prompts),
        left_out=reference.left_out,
        positions=len(reference.tuned_NV),
        adapter_kl=reference.adapter_kl,
        metric=metric,
        forms=tuple(entries),
    )


def _weights(run: RunDir, model: TunedModel) -> int:
    """How many weights the dense model has."""
    if model.gguf is not None:
        return base_facts(model.here.directory).weights
    merge = Merge.read(run.export / "merge.json")
    return merge.nbytes // (4 if merge.dtype == "float32" else 2)
