"""A run inside a run: the same recipe with one thing changed, trained beside the run's own adapter.

Several seeds and a learning curve both train more adapters on what the run has read already. Each gets a run directory of its
own below the run's (``seeds/1/``, ``curve/0.25/``), so the stages work there unchanged, are skipped when they are done, and
resume after a kill. Its table has no stages for what it was given: the split is the run's, whatever the seed is, because
adapters that were trained and tested on other rows could not be compared.
"""

import dataclasses
from pathlib import Path
from typing import Any

from tunesmith.pipeline.stage import Stage, Table, make
from tunesmith.pipeline.table import table_of
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir


def changed(recipe: Recipe, **keys: Any) -> Recipe:
    """The recipe with other values of top keys, and without sub-runs of its own."""
    alone = recipe.evaluate.model_copy(update={"seeds": 1, "learning_curve": ()})
    return recipe.model_copy(update={"evaluate": alone, **keys})


def open_inner(path: Path, recipe: Recipe) -> RunDir:
    """The directory of a run inside a run; whatever recipe it had, it has this one now."""
    return RunDir.create(path, recipe, replace=True)


def share_data(run: RunDir, inner: RunDir) -> None:
    """Let an inner run read the rows and rendered tokens of ``run``, through a link that a moved run keeps."""
    if not inner.data.is_symlink():
        inner.data.symlink_to(Path(*[".."] * len(inner.path.relative_to(run.path).parts)) / run.data.name)


def make_inner(inner: RunDir, recipe: Recipe, *names: str) -> None:
    """Make these stages of an inner run, which was given all that they need beside each other."""
    table = table_of(recipe)
    stages: list[Stage] = []
    for name in names:
        stage = table[name]
        stages.append(dataclasses.replace(stage, needs=tuple(need for need in stage.needs if need in names)))
    with inner.writing():
        make(inner, Table(tuple(stages)), recipe, names, all_needed=True)
