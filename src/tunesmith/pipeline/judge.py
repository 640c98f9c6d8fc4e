"""The stage ``judge``: a model compares every arm with the prompt to beat (``task.metric: judge``).

It waits until both have answered. The scores lie in ``evaluation/judged/<arm>/``, beside the answers and not in their place;
``evaluation/judge.json`` keeps what has to be known of the judge: its agreement with human labels, and for each arm position
consistency and the correlation of length and winning.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.engines.openai_endpoint import OpenAIEndpoint
from tunesmith.evaluate.arms import Outputs, read_outputs, write_outputs
from tunesmith.evaluate.judge import Judge, calibrate, judge_arm, question_text
from tunesmith.evaluate.metrics import make_metric
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, read_rows, write_json

logger = logging.getLogger(__name__)


def scores_folder(run: RunDir, recipe: Recipe, arm: str) -> Path:
    """Where an arm's scored answers lie."""
    return (run.evaluation / "judged" if recipe.task.metric == "judge" else run.evaluation) / arm


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Judge every arm of the recipe against the best prompt's answers.

    Raises:
        RecipeError: a bad schema or pattern in the task, or the variable that should hold the judge's key is not set.
    """
    metric = make_metric(recipe.task)
    best = read_json(run.evaluation / "selection.json")["best_prompt"]
    judge, close = make_judge(recipe)
    session.closing.callback(close)
    questions = [question_text(row["messages"]) for row in read_rows(run.data / "test.jsonl")]
    calibration = calibrate(judge, recipe.task.judge.human_labels)
    logger.info(f"judge: {'calibrated' if calibration['calibrated'] else 'uncalibrated'}: {calibration['reason']}")
    baseline, reports = read_outputs(run.evaluation / best), {}
    for arm in recipe.evaluate.arms:
        answers = run.evaluation / arm
        outputs, reports[arm] = judge_arm(judge, questions, read_outputs(answers), baseline)
        write_outputs(scores_folder(run, recipe, arm), read_json(answers / "scores.json")["key"], outputs, metric)
    write_json(run.evaluation / "judge.json", {"calibration": calibration, "arms": reports})


def make_judge(recipe: Recipe) -> tuple[Judge, Callable[[], None]]:
    """The judge, and how to close its connections.

    Raises:
        RecipeError: a bad schema or pattern in the task.
        RunError: the variable that should hold its key is not set.
    """

    settings = recipe.task.judge
    assert settings.base_url is not None and settings.model is not None  # the recipe sees to it
    engine = OpenAIEndpoint(settings.base_url, settings.model, settings.api_key_env)
    return Judge(engine, recipe.task), engine.close


def comparing(judge: Judge, rows: list[dict[str, Any]]) -> Callable[[Outputs, Outputs], Outputs]:
    """Scores of an arm's records on some of these rows, against those of another arm."""

    questions = {row["id"]: question_text(row["messages"]) for row in rows}
    return lambda outputs, baseline: judge_arm(judge, [questions[row["id"]] for row in outputs], outputs, baseline)[0]
