"""The stage ``forgetting``: base and tuned model on probes that are no part of the task.

An adapted model is loaded once, its adapter not merged, so that switching the adapter off gives the base in the same memory. A
whole tuned model that was brought takes turns with its base.
"""

import logging

from tunesmith.evaluate.forgetting import STEPS, conclude, measure, measure_apart
from tunesmith.evaluate.probes import load_probes
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.stage import Session, module_of
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Compare the tuned model with its base; writes ``evaluation/forgetting.json``.

    Raises:
        DataError: ``evaluate.forgetting.texts`` cannot be used.
        RecipeError: a task cannot be run.
        MissingPackage: tasks are asked for and lm_eval is not installed.
    """
    settings = recipe.evaluate.forgetting
    probes = load_probes(settings.texts)
    model, batch_size = tuned_model(run, recipe), recipe.evaluate.batch_size
    loaded = None if model.adapter is None else model.here.load(model.adapter)
    with progress("forgetting", STEPS) as bar:
        if loaded is None:
            base = base_of(run, recipe)
            sides = (lambda: base.load().model, lambda: model.here.load().model)
            decisive, figures = measure_apart(*sides, base.renderer, probes, settings.margin, batch_size, bar.advance)
        else:
            tuned = (loaded.model, loaded.layers, loaded.renderer)
            decisive, figures = measure(*tuned, probes, settings.margin, batch_size, bar.advance)
    if settings.tasks:
        assert loaded is not None, "the recipe refuses tasks beside a whole model"
        logger.info(f"forgetting: lm-evaluation-harness on {', '.join(settings.tasks)}, base and tuned")
        decisive += module_of("forgetting_tasks").task_probes(loaded, settings)
    result = conclude(decisive, figures, settings.margin)
    result.write(run.evaluation / "forgetting.json")
    logger.info(f"forgetting: {result.verdict}: {result.reason}")
