"""The stage ``forgetting``: base and tuned model on probes that are no part of the task, and the form that ships as well.

An adapted model is loaded once, its adapter not merged, so that switching the adapter off gives the base in the same memory. A
whole tuned model that was brought takes turns with its base. Where the form that deploys is an arm of the recipe, it is asked
the same afterwards, when their memory is free again, and the verdict is of that. Of several candidates each is measured by
itself, a GGUF as it is deployed; the chosen one once more, with the file that is made of it. A GGUF that is chosen is measured
already.
"""

import logging
from contextlib import closing

from tunesmith import hardware
from tunesmith.engines.form import ComputePlace, ExportedForm
from tunesmith.evaluate.forgetting import STEPS, Measured, Paired, compared, conclude, measure, measure_apart
from tunesmith.evaluate.forgetting_form import bits_added, bits_off, conclude_form, longest_of, measure_form, texts_of
from tunesmith.evaluate.probes import Probes, load_probes
from tunesmith.export.names import deployed_form
from tunesmith.models.device import best_device
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.export import brought_form, exported_forms
from tunesmith.pipeline.forgetting_stages import forgetting_file
from tunesmith.pipeline.stage import Session, module_of
from tunesmith.pipeline.tuned_model import TunedModel, tuned_model
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.choice import Choice
from tunesmith.rundir.records.evidence import Forgetting
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Compare a tuned model and its deployed form with its base; writes ``evaluation/forgetting.json``, or a file a candidate.

    Raises:
        DataError: ``evaluate.forgetting.texts`` cannot be used.
        RecipeError: a task cannot be run.
        MissingPackage: tasks are asked for and lm_eval is not installed.
        ExportError: the deployed form cannot be run.
    """
    settings = recipe.evaluate.forgetting
    model = tuned_model(run, recipe, argument or "tuned")
    file = run.path / forgetting_file(argument)
    file.parent.mkdir(exist_ok=True)
    if recipe.chooses and not argument and model.gguf is not None:
        Forgetting.read(run.path / forgetting_file(Choice.read(run.choice_file).name)).write(file)
        return
    probes, form = load_probes(settings.texts), _deployed(run, recipe, model, argument)
    measured, tasks = _in_process(run, recipe, model, probes, form is not None)
    decisive, figures = compared(measured, probes, settings.margin)
    result = conclude([*decisive, *tasks], figures, settings.margin)
    if form is not None:
        hardware.release_freed_memory()
        hardware.begin_part()  # the models in process are gone: their peak and the file's never meet
        place = ComputePlace(device=best_device(), arithmetic=model.here.compute)
        texts = progress(f"forgetting of {form.name}", texts_of(measured))
        with closing(form.open(place, longest_of(measured))) as opened, texts as bar:
            of_form = measure_form(opened, measured, probes, bar.advance)
        decisive, figures = compared(of_form, probes, settings.margin)
        concluded, added = conclude([*decisive, *tasks], figures, settings.margin), bits_added(measured, of_form)
        is_same = form.rounding is not None or recipe.deploys_adapter or recipe.train.qat or model.gguf is not None
        off = bits_off(measured, of_form) if is_same else None
        result = conclude_form(concluded, result, form.name, added, off)
    result.write(file)
    logger.info(f"forgetting: {f'{argument}: ' if argument else ''}{result.verdict}: {result.reason}")


def _in_process(run: RunDir, recipe: Recipe, model: TunedModel, probes: Probes, keep: bool) -> tuple[Measured, list[Paired]]:
    """Base and tuned model, and the recipe's tasks; arguments as of ``measure``."""
    settings, batch_size = recipe.evaluate.forgetting, recipe.evaluate.batch_size
    loaded = None if model.adapter is None else model.here.load(model.adapter)
    with progress("forgetting", STEPS) as bar:
        if loaded is None:
            base = base_of(run, recipe)
            sides = (lambda: base.load().model, lambda: model.here.load().model)
            measured = measure_apart(*sides, base.renderer, probes, batch_size, bar.advance)
        else:
            tuned = (loaded.model, loaded.layers, loaded.renderer)
            measured = measure(*tuned, probes, batch_size, bar.advance, keep)
    if not settings.tasks:
        return measured, []
    assert loaded is not None, "the recipe refuses tasks beside a whole model"
    logger.info(f"forgetting: lm-evaluation-harness on {', '.join(settings.tasks)}, base and tuned")
    return measured, module_of("forgetting_tasks").task_probes(loaded, settings)


def _deployed(run: RunDir, recipe: Recipe, model: TunedModel, candidate: str) -> ExportedForm | None:
    """The form that deploys, where it is an arm.

    Args:
        candidate: the arm of one of several, which has no other form than it came in.

    Raises:
        RunError: a file of the export is gone.
    """
    if candidate:
        return None if model.gguf is None else brought_form(model.gguf)
    if "deployed" not in recipe.evaluate.arms:
        return None
    name = deployed_form(recipe) if model.gguf is None else model.gguf.name
    return next(form for form in exported_forms(run, recipe) if form.name == name)
