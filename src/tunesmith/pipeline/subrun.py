"""A run inside a run: the same recipe with one thing changed, trained beside the run's own adapter.

Several seeds and a learning curve both train more adapters on what the run has read already. Each gets a run directory
of its own below the run's (``seeds/1/``, ``curve/0.25/``), so the stages work there unchanged, are skipped when they are
done, and resume after a kill. What is shared is not copied: the split is the run's, whatever the seed is, because adapters
that were trained and tested on other rows could not be compared.
"""

from pathlib import Path
from typing import Any

from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, write_json

RENDERED = ("data", "render")


def changed(recipe: Recipe, **keys: Any) -> Recipe:
    """The recipe with other values of top keys, and without sub-runs of its own."""
    alone = recipe.evaluate.model_copy(update={"seeds": 1, "learning_curve": ()})
    return recipe.model_copy(update={"evaluate": alone, **keys})


def with_shared_data(run: RunDir, path: Path, recipe: Recipe) -> RunDir:
    """A run directory that reads the rows and rendered tokens of ``run``.

    Its books say that both are done. The directory opened anew by its path has no data: only this function knows of it.

    Raises:
        RunError: ``run`` was not rendered, or the place cannot be written.
    """
    done = {stage: {"inputs": run.key_of(stage), "seconds": 0.0, "peak_bytes": 0} for stage in RENDERED}
    inner = RunDir.create(path, recipe)
    inner.data, inner.split_file = run.data, run.split_file
    write_json(inner.stages_file, {**inner.stages(), **done})
    return inner
