"""The stage parity: every form that an export wrote, held against what was trained.

The rooms meet here: the export says which forms there are, the evaluation asks and compares answers to dev rows, ``parity/``
does the rest. The sealed test part is not read.

Shape suffixes: N rows (positions of all prompts), V vocabulary.
"""

import logging
import shutil

from tunesmith.pipeline.dev_task import dev_task, spread, text_rows
from tunesmith.pipeline.export import context_of, exported_forms
from tunesmith.pipeline.stage import renderer, stage
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.records.export import Merge
from tunesmith.rundir.records.parity import FormParity, Parity, ParityMetric

logger = logging.getLogger(__name__)


DEV_PROMPTS = 12  # beside the fixed ones: the figures are means over some 500 positions, enough for 1 in 100
DEV_ROWS = 32  # for the metric: llama.cpp answers them one after another, once a form; enough to see a form that is broken
SCRATCH = ".parity"


def parity(run: RunDir) -> Parity:
    """Compare every exported form with the training stack; writes and returns ``export/parity.json``.

    Raises:
        RunError: the run was not exported, or a file of its export is gone.
        MissingPackage: llama.cpp is not installed.
    """
    from tunesmith.evaluate.metrics import scoring
    from tunesmith.parity.checks import AGREEMENT, BOUNDS, LOOSE_AGREEMENT, LOOSE_KL
    from tunesmith.parity.prompts import LONG, NEW_TOKENS

    recipe = run.recipe()
    exported = run.key_of("export")
    limits = (DEV_PROMPTS, DEV_ROWS, LONG, NEW_TOKENS, BOUNDS, AGREEMENT, LOOSE_KL, LOOSE_AGREEMENT)
    key = fingerprint(exported, run.key_of("render"), scoring(recipe.task), recipe.task.min_gain, limits)
    target = run.export / "parity.json"
    with stage(run, "parity", key, target) as needed:
        if needed:
            _measured(run, recipe, exported).write(target)
    result = Parity.read(target)
    for form in result.forms:
        logger.info(f"parity: {form.form}: {form.state}{f': {form.reason}' if form.reason else ''}")
    return result


def deployed_parity(run: RunDir) -> FormParity | None:
    """The entry of the form that the recipe deploys; None where parity was not measured on the export that is there."""
    target = run.export / "parity.json"
    result = Parity.read(target) if target.exists() else None
    return None if result is None or result.inputs != run.key_of("export") else result.deployed_form


def _measured(run: RunDir, recipe: Recipe, exported: str) -> Parity:
    from tunesmith.evaluate.prompts import tuned
    from tunesmith.parity.measure import measure_form
    from tunesmith.parity.reference import Trained, choose_place, run_reference

    base, written = renderer(recipe)
    trained = Trained(recipe=recipe, base=base, renderer=written, adapter=run.adapter)
    forms = exported_forms(run, recipe)
    place = choose_place(trained, Merge.read(run.export / "merge.json"))
    answerable = dev_task(run, recipe, DEV_ROWS)
    task, no_task = (None, answerable) if isinstance(answerable, str) else (answerable, None)
    dev_prompts = {row["id"]: tuned(recipe, row) for row in spread(text_rows(run), DEV_PROMPTS)}
    context, scratch = context_of(run, recipe)[0], run.export / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        reference = run_reference(trained, dev_prompts, place, task, scratch)
        entries = [measure_form(form, reference, written.tokenizer, place, task, context, no_task) for form in forms]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    metric = ParityMetric(reason=no_task)
    if task is not None:
        metric = ParityMetric(name=task.metric, n=task.n, score=task.score(reference.answers), margin=task.margin)
    return Parity(
        inputs=exported,
        deployed=recipe.export.gguf[-1],
        arithmetic=place.arithmetic,
        prompts=tuple(prompt.name for prompt in reference.prompts),
        left_out=reference.left_out,
        positions=len(reference.tuned_NV),
        adapter_kl=reference.adapter_kl,
        metric=metric,
        forms=tuple(entries),
    )
