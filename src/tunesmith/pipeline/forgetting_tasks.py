"""The part of the stage ``forgetting`` that needs lm-evaluation-harness, imported where a recipe names tasks."""

from tunesmith.engines.base import LoadedModel
from tunesmith.evaluate.forgetting import Paired
from tunesmith.evaluate.lm_eval import run_tasks
from tunesmith.recipe.evaluate import Forgetting


def task_probes(loaded: LoadedModel, settings: Forgetting) -> list[Paired]:
    """The recipe's tasks, on base and tuned model.

    Raises:
        RecipeError: a task cannot be run.
    """
    tuned = (loaded.model, loaded.layers, loaded.renderer)
    return run_tasks(*tuned, settings.tasks, settings.tasks_path, settings.limit, settings.margin)
