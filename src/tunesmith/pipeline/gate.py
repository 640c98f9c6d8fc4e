"""The command ``gate``: a recipe for tuned models that somebody else trained, written from what a command line says.

The recipe is that of ``init`` with the section ``tuned``. Nothing is trained, so rows are worth more in the verdict than beside
it: half of them are the test part, a fifth the dev part that prompts are chosen on, and the rest is what prompts may show.

Refused: a verdict on all rows with prompts chosen on the same ones, which is how a prompt loses that was never given a chance.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import JsonValue

from tunesmith.data.read import ReadOptions
from tunesmith.errors import RecipeError
from tunesmith.pipeline.init import draft
from tunesmith.recipe import recipe_from
from tunesmith.recipe.load import name_of
from tunesmith.recipe.tuned import Tuned
from tunesmith.rundir import RunDir

logger = logging.getLogger(__name__)

TEST, DEV = 0.5, 0.2


def named(
    adapters: Sequence[Path],
    merged: Sequence[Path],
    ggufs: Sequence[Path],
    endpoint: tuple[str, str] | None,
    api_key_env: str | None,
) -> list[Tuned]:
    """The candidates that a command line names, by their paths; two of one name get the folder's in front.

    Args:
        endpoint: address, and the model's name there.
    """
    made = [Tuned(adapter=path.resolve()) for path in adapters]
    made += [Tuned(merged=path.resolve()) for path in merged] + [Tuned(gguf=path.resolve()) for path in ggufs]
    if endpoint is not None:
        made.append(Tuned(endpoint=endpoint[0], model=endpoint[1], api_key_env=api_key_env))
    labels = [one.label for one in made]
    return [
        one.model_copy(update={"name": name_of(f"{one.place.parent.name}-{one.label}")})
        if labels.count(one.label) > 1 and one.endpoint is None
        else one
        for one in made
    ]


def open_gate(
    source: str,
    base: str,
    candidates: list[Tuned],
    options: ReadOptions,
    out: Path | None = None,
    *,
    task: dict[str, JsonValue],
    trained_on: Path | None = None,
    replace: bool = False,
) -> RunDir:
    """Write the recipe of a gate into its run directory.

    Args:
        source: file, directory or hub id of the rows.
        base: what the candidates were tuned from, and what the prompts ask: hub id, directory or .gguf file.
        options: how to read the rows.
        out: the run directory; ``runs/gate-<rows>-<candidate>`` by default.
        task: keys of the section ``task`` that are given; the metric is proposed where it is not among them.
        trained_on: rows of the training, where they are known.
        replace: whether it may take the place of another run there.

    Raises:
        RecipeError: no candidate, or a metric that needs more than a command line says.
        DataError: nothing to read, bad rows, or rows without an answer that can be scored.
        RunError: the place holds something else.
    """
    if not candidates:
        raise RecipeError("nothing to gate", "name a tuned model with --adapter, --merged, --gguf or --endpoint")
    place = out or Path("runs") / _name(source, candidates)
    metric = task.get("metric")
    text, proposal = draft(source, base, options, place / "recipe.yaml", None if metric is None else str(metric))
    raw = cast("dict[str, Any]", yaml.safe_load(text))
    raw["task"] |= {key: value for key, value in task.items() if value is not None}
    if "split" not in raw["data"]:
        raw["data"] |= {"test_fraction": TEST, "dev_fraction": DEV}
        logger.info(f"gate: nothing is trained, so {TEST:.0%} of the rows are the test part and {DEV:.0%} the dev part")
    if trained_on is not None:
        raw["data"]["trained_on"] = str(trained_on.resolve())
    else:
        logger.warning(
            "gate: which rows the model was trained on is not known; --trained-on FILE keeps them out of the test part"
        )
    raw["tuned"] = [one.model_dump(mode="json", exclude_none=True) for one in candidates]
    raw["name"] = name_of(place.resolve().name)
    logger.info(f"gate: metric {proposal.metric}: {proposal.reason}")
    if "prompt" not in raw["task"]:
        logger.warning(
            "gate: no instruction is given (--prompt TEXT), so the prompts to beat are examples and the bare question"
        )
    recipe = recipe_from(raw, place.resolve(), "gate")
    return RunDir.create(place, recipe, replace=replace)


def _name(source: str, candidates: list[Tuned]) -> str:
    rows = Path(source.replace(":", "-")).name.partition(".")[0] or "rows"
    more = f"-and-{len(candidates) - 1}" if len(candidates) > 1 else ""
    return name_of(f"gate-{rows}-{candidates[0].label}{more}")
