"""The stage ``verdict``: decide from the scored arms and the checks around them. Reads files, and asks nobody."""

from pathlib import Path
from typing import Any

from tunesmith.evaluate import gate
from tunesmith.evaluate.arms import read_outputs
from tunesmith.evaluate.metrics import make_metric
from tunesmith.pipeline.judge import scores_folder
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, read_rows, write_json
from tunesmith.rundir.records.parity import Parity


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Write ``evaluation/verdict.json``: what ``evaluate.gate.verdict`` returns, and ``selection``, ``judge`` and ``retrieval``
    as their files hold them."""
    arms = recipe.evaluate.arms
    choice = read_json(run.evaluation / "selection.json")
    tuned = any(arm in gate.TUNED_ARMS for arm in arms)
    forgotten = read_json(run.evaluation / "forgetting.json") if tuned else None
    if forgotten is not None:
        forgotten["required"] = recipe.evaluate.forgetting.required
    result = gate.verdict(
        {arm: read_outputs(scores_folder(run, recipe, arm)) for arm in arms},
        choice["best_prompt"],
        make_metric(recipe.task),
        recipe.task.min_gain,
        _groups(run, recipe),
        forgotten,
        read_json(run.evaluation / "seeds.json") if recipe.evaluate.seeds > 1 else None,
        Parity.read(run.export / "parity.json").deployed_form if tuned else None,
    )
    result["selection"] = choice
    result["judge"] = read_json(run.evaluation / "judge.json") if recipe.task.metric == "judge" else None
    result["retrieval"] = _read(run.evaluation / "retrieval.json")
    write_json(run.verdict_file, result)


def _groups(run: RunDir, recipe: Recipe) -> list[str] | None:
    """The group of every test row where ``data.group_by`` makes clusters; a row without one is its own."""
    if recipe.data.group_by is None:
        return None
    return [row.get("group") or row["id"] for row in read_rows(run.data / "test.jsonl")]


def _read(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.exists() else None
