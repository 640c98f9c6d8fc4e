"""The judge of a recipe, over the arms of a run (``task.metric: judge``).

Every arm is compared with the prompt to beat, so judging waits until both have answered: it is part of the verdict, and
done anew when either's answers or the rubric changed. ``evaluation/judge.json`` keeps what has to be known of the judge:
its agreement with human labels, and for each arm position consistency and the correlation of length and winning.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunesmith.pipeline.stage import stage
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, fingerprint, read_rows
from tunesmith.rundir.records.evaluation import Output, Scores
from tunesmith.rundir.records.evidence import Judgement, JudgeReport
from tunesmith.rundir.rows import Row

if TYPE_CHECKING:
    from tunesmith.evaluate.judge import Judge
    from tunesmith.evaluate.metrics import Metric
    from tunesmith.evaluate.select import JudgeAnswers

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


def comparing(judge: "Judge", rows: list[Row]) -> "JudgeAnswers":
    """Scores answers to some of these rows against another arm's."""
    from tunesmith.evaluate.judge import judge_arm, question_text

    questions = {row["id"]: question_text(row["messages"]) for row in rows}

    def scored(outputs: list[Output], baseline: list[Output]) -> list[Output]:
        return judge_arm(judge, [questions[output.id] for output in outputs], outputs, baseline)[0]

    return scored


def judge_arms(run: RunDir, recipe: Recipe, metric: "Metric", best_prompt: str) -> Judgement:
    """Judge every arm of the recipe against the best prompt's answers; the scores go into the arms' own files."""
    from tunesmith.evaluate.arms import read_outputs, write_outputs
    from tunesmith.evaluate.judge import calibrate, judge_arm, question_text
    from tunesmith.evaluate.metrics import scoring_key

    arms = recipe.evaluate.arms
    target = run.evaluation / "judge.json"
    key = fingerprint(best_prompt, scoring_key(recipe.task), [run.key_of(f"evaluate {arm}") for arm in arms])
    with stage(run, "judge", key) as needed:
        if needed:
            judge, close = make_judge(recipe)
            try:
                questions = [question_text(row["messages"]) for row in read_rows(run.data / "test.jsonl")]
                calibration = calibrate(judge, recipe.task.judge.human_labels)
                logger.info(f"judge: {'calibrated' if calibration.calibrated else 'uncalibrated'}: {calibration.reason}")
                baseline = read_outputs(run.evaluation / best_prompt)
                reports: dict[str, JudgeReport] = {}
                for arm in arms:
                    folder = run.evaluation / arm
                    outputs, reports[arm] = judge_arm(judge, questions, read_outputs(folder), baseline)
                    write_outputs(folder, Scores.read(folder / "scores.json").key, outputs, metric)
            finally:
                close()
            Judgement(calibration=calibration, arms=reports).write(target)
    return Judgement.read(target)
