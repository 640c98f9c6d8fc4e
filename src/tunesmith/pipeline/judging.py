"""The judge of a recipe, over the arms of a run (``task.metric: judge``).

Every arm is compared with the prompt to beat, so judging waits until both have answered: it is part of the verdict, and
done anew when either's answers or the rubric changed. ``evaluation/judge.json`` keeps what has to be known of the judge:
its agreement with human labels, and for each arm position consistency and the correlation of length and winning.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunesmith.pipeline.stage import stage
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, fingerprint, read_json, read_rows, write_json

if TYPE_CHECKING:
    from tunesmith.evaluate.arms import Outputs
    from tunesmith.evaluate.judge import Judge
    from tunesmith.evaluate.metrics import Metric

logger = logging.getLogger(__name__)


def make_judge(recipe: Recipe) -> "tuple[Judge, Callable[[], None]]":
    """The judge, and how to close its connections.

    Raises:
        RecipeError: a bad schema or pattern in the task.
        RunError: the variable that should hold its key is not set.
    """
    from tunesmith.engines.openai_endpoint import OpenAIEndpoint
    from tunesmith.evaluate.judge import Judge

    settings = recipe.task.judge
    assert settings.base_url is not None and settings.model is not None  # the recipe sees to it
    engine = OpenAIEndpoint(settings.base_url, settings.model, settings.api_key_env)
    return Judge(engine, recipe.task), engine.close


def comparing(judge: "Judge", rows: list[dict[str, Any]]) -> "Callable[[Outputs, Outputs], Outputs]":
    """Scores of an arm's records on some of these rows, against those of another arm."""
    from tunesmith.evaluate.judge import judge_arm, question_text

    asked = {row["id"]: question_text(row["messages"]) for row in rows}
    return lambda outputs, baseline: judge_arm(judge, [asked[row["id"]] for row in outputs], outputs, baseline)[0]


def judge_arms(run: RunDir, recipe: Recipe, metric: "Metric", best_prompt: str) -> dict[str, Any]:
    """Judge every arm of the recipe against the best prompt's answers; the scores go into the arms' own files.

    Returns:
        ``calibration`` and, by arm, the ``report`` of its comparison; also in ``evaluation/judge.json``.
    """
    from tunesmith.evaluate.arms import read_outputs, write_outputs
    from tunesmith.evaluate.judge import calibrate, judge_arm, question_text
    from tunesmith.evaluate.metrics import scoring

    arms = recipe.evaluate.arms
    target = run.evaluation / "judge.json"
    key = fingerprint(best_prompt, scoring(recipe.task), [run.key_of(f"evaluate {arm}") for arm in arms])
    with stage(run, "judge", key) as needed:
        if needed:
            judge, close = make_judge(recipe)
            try:
                questions = [question_text(row["messages"]) for row in read_rows(run.data / "test.jsonl")]
                calibration = calibrate(judge, recipe.task.judge.human_labels)
                logger.info(f"judge: {'calibrated' if calibration['calibrated'] else 'uncalibrated'}: {calibration['reason']}")
                baseline, reports = read_outputs(run.evaluation / best_prompt), {}
                for arm in arms:
                    folder = run.evaluation / arm
                    outputs, reports[arm] = judge_arm(judge, questions, read_outputs(folder), baseline)
                    write_outputs(folder, read_json(folder / "scores.json")["key"], outputs, metric)
            finally:
                close()
            write_json(target, {"calibration": calibration, "arms": reports})
    return read_json(target)
