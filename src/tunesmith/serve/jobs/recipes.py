"""The recipe of a job: what ``tunesmith init`` writes for its rows, then the settings, then the request, the later first.

What a request may set are the keys of ``hyperparameters.py``; a path can only come from the settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from tunesmith.data.read import ReadOptions
from tunesmith.pipeline.reading import options_of
from tunesmith.recipe import Recipe, Train, dump_recipe
from tunesmith.recipe.data import Data
from tunesmith.recipe.derive import Derived, derive, width_of_update
from tunesmith.recipe.load import recipe_from, section_from
from tunesmith.rundir.records.base import Json
from tunesmith.serve.jobs.settings import JobsSettings


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a process of ``tasks.py`` is asked about rows.

    Attributes:
        name: of the run.
        model: by its name in the settings.
        file: in ``files/``; empty where the rows of a job are meant.
        brings_test: whether another file will be the test part.
        rows: to preview.
    """

    name: str
    model: str
    seed: int = 0
    hyperparameters: Json = field(default_factory=dict[str, JsonValue])
    options: Json = field(default_factory=dict[str, JsonValue])
    file: str = ""
    brings_test: bool = False
    rows: int = 0


def read_options(settings: JobsSettings) -> ReadOptions:
    """How the settings say that rows are read.

    Raises:
        RecipeError: they say it wrongly.
    """
    data = settings.recipe.get("data", {})
    assert isinstance(data, dict)
    return options_of(section_from(Data, {"path": "rows", **data}, "jobs.yaml, recipe.data"))


def metric_of(settings: JobsSettings, options: Json) -> str | None:
    """The metric that is named for a job; None where it is told from the rows."""
    task = settings.recipe.get("task")
    named = options.get("metric") or (task.get("metric") if isinstance(task, dict) else None)
    return named if isinstance(named, str) else None


def merged(first: Mapping[str, JsonValue], *others: Mapping[str, JsonValue]) -> Json:
    """Sections put over each other; of a key that is named twice the later one counts."""
    result: Json = dict(first)
    for other in others:
        for key, value in other.items():
            below = result.get(key)
            result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def recipe_of(
    draft: Json,
    settings: JobsSettings,
    *,
    directory: Path,
    name: str,
    model: str,
    rows: Path,
    seed: int,
    asked: Json,
    options: Json,
) -> Recipe:
    """The recipe of a job; ``batch_size`` and ``learning_rate_multiplier`` come later, since they need the rows' tokens.

    Args:
        draft: what is proposed for the rows.
        directory: from which the paths of the settings start.
        asked: hyperparameters.
        options: ours.

    Raises:
        RecipeError: the three together are no recipe.
    """
    task: Json = {key: value for key, value in options.items() if value is not None}
    if "metric" in task:  # keys of another metric that is proposed or set would be refused
        draft = {**draft, "task": _without_labels(draft.get("task"), task)}
    data: Json = {"path": str(rows), **({"split": "given"} if rows.is_dir() else {})}
    own: Json = {"name": name, "model": model, "seed": seed, "data": data, "task": task}
    if asked.get("n_epochs", "auto") != "auto":
        own["train"] = {"num_train_epochs": asked["n_epochs"]}
    whole = merged(draft, settings.recipe, own)
    return recipe_from(whole, directory, "the recipe of this job")


def _without_labels(section: JsonValue, task: Json) -> JsonValue:
    if not isinstance(section, dict) or section.get("metric") == task["metric"]:
        return section
    return {key: value for key, value in section.items() if key != "labels"}


class Counted(NamedTuple):
    """What a train part amounts to.

    Attributes:
        rows: at least one.
        tokens: of them all.
        supervised: those of them that are answers.
    """

    rows: int
    tokens: int
    supervised: int

    def derive(self, train: Train, recipe: Recipe, hidden: int) -> Derived:
        """What a section ``train`` comes to for these rows, the recipe's adapter and a model of this width."""
        rows, tokens, supervised = self
        update = width_of_update(recipe.lora)
        return derive(train, rows=rows, tokens=max(rows, tokens), hidden=hidden, update=update, supervised=supervised)


def with_numbers(recipe: Recipe, asked: Json, counted: Counted, hidden: int) -> tuple[Recipe, Derived, list[str]]:
    """A recipe whose batch size and rate are those that were asked for, what it comes to, and what there is to say.

    Args:
        counted: of the train part.
        hidden: width of the model.
    """
    mean = counted.tokens / counted.rows
    said: list[str] = []
    changes: Json = {}
    batch, multiplier = asked.get("batch_size", "auto"), asked.get("learning_rate_multiplier", "auto")
    if isinstance(batch, int):
        changes["tokens_per_step"] = max(1, round(batch * mean))
        said.append(f"batch_size {batch}: {changes['tokens_per_step']:,} tokens a step, {mean:,.0f} a row on average")
    train = Train.model_validate({**recipe.train.model_dump(), **changes})
    derived = counted.derive(train, recipe, hidden)
    if isinstance(multiplier, int | float):
        rate = float(f"{multiplier * derived.settings.learning_rate:.3g}")
        said.append(f"learning_rate_multiplier {multiplier:g}: {rate:g}, {multiplier:g} x {derived.settings.learning_rate:g}")
        train = Train.model_validate({**train.model_dump(), "learning_rate": rate})
        derived = counted.derive(train, recipe, hidden)
    changed = recipe.model_copy(update={"train": train}) if said else recipe
    return changed, derived, said


def same_recipe(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes are one in the file."""
    return dump_recipe(one) == dump_recipe(other)
