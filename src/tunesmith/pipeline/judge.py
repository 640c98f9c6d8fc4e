"""The stage ``judge``: a model compares every arm with the prompt to beat (``task.metric: judge``).

It waits until both have answered. The scores lie in ``evaluation/judged/<arm>/``, next to the answers and not in their place;
``evaluation/judge.json`` keeps what has to be known of the judge: its agreement with human labels, and for each arm position
consistency and the correlation of length and winning.
"""

import logging
from collections.abc import Callable

from tunesmith.engines.openai_endpoint import OpenAIEndpoint
from tunesmith.evaluate.arms import read_outputs, write_outputs
from tunesmith.evaluate.judge import Judge, calibrate, judge_arm, question_text
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.select import JudgeAnswers
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.answers import Output, Scores
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.evidence import Judgement, JudgeReport
from tunesmith.rundir.rows import Row

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Judge every arm and finalist against the answers of the best prompt on dev.

    Raises:
        RecipeError: a bad schema or pattern in the task, or the variable that should hold the judge's key is not set.
    """
    metric = make_metric(recipe.task)
    selection = Selection.read(run.evaluation / "selection.json")
    judge, close = make_judge(recipe)
    session.closing.callback(close)
    questions = [question_text(row.messages) for row in read_rows(run.data / "test.jsonl")]
    calibration = calibrate(judge, recipe.task.judge.human_labels)
    logger.info(f"judge: {'calibrated' if calibration.calibrated else 'uncalibrated'}: {calibration.reason}")
    baseline = read_outputs(run.answers(selection.leader))
    reports: dict[str, JudgeReport] = {}
    for arm in selection.scored(recipe.evaluate.arms):
        answers = run.answers(arm)
        outputs, reports[arm] = judge_arm(judge, questions, read_outputs(answers), baseline)
        write_outputs(run.judged_answers(arm), Scores.read(answers / "scores.json").key, outputs, metric)
    Judgement(calibration=calibration, arms=reports).write(run.evaluation / "judge.json")


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


def comparing(judge: Judge, rows: list[Row]) -> JudgeAnswers:
    """Scores answers to some of these rows against another arm's."""
    questions = {row.id: question_text(row.messages) for row in rows}

    def scored(outputs: list[Output], baseline: list[Output]) -> list[Output]:
        return judge_arm(judge, [questions[output.id] for output in outputs], outputs, baseline)[0]

    return scored
