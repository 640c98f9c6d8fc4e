"""The stage ``select``: the prompts of every arm, chosen on dev; no test row is read."""

import functools
import logging

from tunesmith.data.split import groups_of
from tunesmith.engines.constraint import check_constraint
from tunesmith.engines.engine import Choices, Engine
from tunesmith.engines.open import open_endpoint, open_writer
from tunesmith.errors import MissingPackage, RecipeError
from tunesmith.evaluate.select import PromptTask, select_prompt
from tunesmith.pipeline.evaluation import Evaluation, evaluation_of
from tunesmith.pipeline.judge import comparing, make_judge
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import HeldTo, Recipe
from tunesmith.rundir import RunDir

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Choose the prompts; writes ``evaluation/selection.json``.

    Raises:
        DataError: a row that the metric cannot score.
    """
    selection = select_prompt(_prompt_task(evaluation_of(run, recipe, session)))
    selection.write(run.evaluation / "selection.json")
    names = ", ".join(selection.way_of(name) for name in selection.finalists)
    logger.info(f"select: of {len(selection.candidates)} prompts the best on {selection.dev_rows} dev rows: {names}")


def _ways(evaluation: Evaluation) -> tuple[HeldTo, ...]:
    """The ways in which every prompt is tried; what nobody asked for and cannot be had is said."""
    task, language = evaluation.recipe.task, evaluation.language
    if task.constrained != "auto" or language is None or isinstance(language, Choices):
        return task.held_to
    try:
        check_constraint(language)
    except (MissingPackage, RecipeError) as error:
        logger.warning(
            f"select: no prompt is tried with its answers held to the {task.held_to[-1]}: {error.message}; {error.hint}"
        )
        return ("",)
    return task.held_to


def _prompt_task(evaluation: Evaluation) -> PromptTask:
    """What every candidate has in common."""

    @functools.cache
    def engine(answerer: str) -> Engine:
        if answerer == "base":
            return evaluation.base()
        endpoint = open_endpoint(evaluation.recipe.evaluate.endpoint_of(answerer))
        evaluation.closing.callback(endpoint.close)
        return endpoint

    judge_answers = None
    if evaluation.metric.name == "judge":
        judge, close = make_judge(evaluation.recipe)
        evaluation.closing.callback(close)
        judge_answers = comparing(judge, evaluation.dev)
    writer = None
    if evaluation.recipe.evaluate.optimized_prompt.writer is not None:
        writer, close = open_writer(evaluation.recipe.evaluate.optimized_prompt.writer)
        evaluation.closing.callback(close)
    return PromptTask(
        recipe=evaluation.recipe,
        book=evaluation.book,
        dev=evaluation.dev,
        metric=evaluation.metric,
        max_new_tokens=evaluation.prompt_budget,
        test_rows=len(evaluation.test),
        groups=groups_of(evaluation.dev),
        engine_of=engine,
        allowed=evaluation.language,
        held_to=_ways(evaluation),
        judge=judge_answers,
        writer=writer,
    )
