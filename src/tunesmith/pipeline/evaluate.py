"""The stages ``evaluate <arm>``: every arm on the sealed test part, kept row by row.

``evaluate finalists`` scores the prompts that the tuned model has to beat and that are not the best of their arm. How many
there are, and of which arms, is known when the prompts were chosen, so they share a stage and a folder. One that asks as an
arm does is not asked twice.

When only the scoring changed, the kept answers are scored anew. Each reading of the test part is booked before its first
question (``booking.py``).
"""

import logging
import shutil
from dataclasses import replace

from tunesmith.engines.engine import Choices
from tunesmith.evaluate.arms import declared_tools, key_of_answers, run_arm
from tunesmith.evaluate.candidates import is_tuned
from tunesmith.formatting import percent
from tunesmith.pipeline.booking import book
from tunesmith.pipeline.evaluation import Evaluation, engine_of, evaluation_of
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, PROMPT_DEPLOYED, Recipe
from tunesmith.retrieval.corpus import find
from tunesmith.retrieval.measure import RECALL_AT, recall_line, recall_of
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.names import from_disk
from tunesmith.rundir.records.answers import Summary
from tunesmith.rundir.records.evaluation import Candidate, Selection
from tunesmith.rundir.records.events import ArmScore
from tunesmith.tracking import emit

logger = logging.getLogger(__name__)

FINALISTS = "finalists"


def execute(run: RunDir, recipe: Recipe, session: Session, arm: str) -> None:
    """Score an arm, or the finalists that are no arm, on the sealed test part.

    Raises:
        DataError: a row that the metric cannot score.
        RunError: the arm's model is not there.
    """
    evaluation = evaluation_of(run, recipe, session)
    if arm == PROMPT_DEPLOYED:
        selection = Selection.read(run.evaluation / "selection.json")
        _score(evaluation, arm, {arm: selection.arms[selection.base_prompt]})
        return
    if arm not in PROMPT_ARMS and not arm.startswith(EXTERNAL) and arm != FINALISTS:
        _score(evaluation, arm, {})
        return
    selection = Selection.read(run.evaluation / "selection.json")
    names = selection.more_finalists(recipe.evaluate.arms) if arm == FINALISTS else (arm,)
    for name in names:
        _score(evaluation, name, selection.arms)
    if arm == FINALISTS:
        for folder in run.finalists.glob("*"):
            if from_disk(folder.name) not in names:  # of an earlier choice
                shutil.rmtree(folder)


def _score(evaluation: Evaluation, arm: str, chosen: dict[str, Candidate]) -> None:
    """Score an arm or finalist.

    Args:
        chosen: by prompt arm or finalist, what was chosen on dev; not looked at for a tuned arm.
    """
    run, recipe = evaluation.run, evaluation.recipe
    prompts = evaluation.prompts(arm, chosen)
    budget, allowed = evaluation.budget_of(arm), evaluation.allowed_of(arm, chosen)
    tools = declared_tools(evaluation.test, evaluation.metric)
    weights, engine = engine_of(run, recipe, arm, evaluation.base, prompts, budget, tools, evaluation.shared)
    answers_key = key_of_answers(weights, prompts, budget, allowed, tools)
    twin_key = None
    if arm in chosen and arm != PROMPT_DEPLOYED and not isinstance(evaluation.language, Choices):  # the base answers
        other = None if allowed is not None else evaluation.language
        twin_key = key_of_answers(weights, prompts, budget, other, tools)
    if arm.partition(":")[0] in ("retrieval", "tuned_retrieval"):
        _report_recall(evaluation)
    folder, price, rows = run.answers(arm), evaluation.cost_of(arm), evaluation.test
    if is_tuned(arm):
        book(run, rows, arm, "tuned", tuned_model(run, recipe, arm).key)
    else:
        book(run, rows, arm, "prompt", _prompt_key(weights, evaluation.candidate_of(arm, chosen)))
    summary = run_arm(
        folder, run.evaluation, engine, answers_key, rows, prompts, evaluation.metric, budget, allowed, price, twin_key
    )
    emit(ArmScore(arm=arm, rows=summary.n, score=summary.score))
    logger.info(f"evaluate: {_summary_line(summary)}")


def _prompt_key(weights: str, candidate: Candidate) -> str:
    """One way to prompt one model, whichever arm it stands for."""
    return fingerprint(weights, replace(candidate, arm="").to_json())


def _summary_line(summary: Summary) -> str:
    """An arm's result in one line."""
    scored = summary.score is not None
    result = f"scores {percent(summary.score)} of 100" if scored else "has answered, and waits for the judge"
    cost = "" if summary.cost is None else f", {summary.n * summary.cost:.4g} in all"
    return f"{summary.name} {result}, {summary.ms:.0f} ms an example{cost}"


def _report_recall(evaluation: Evaluation) -> None:
    """Say whether the right passages are found, before any answer is scored."""
    hits = find(evaluation.documents(), evaluation.test, max(RECALL_AT, evaluation.recipe.evaluate.retrieval.k))
    recall = recall_of(hits, evaluation.test, evaluation.corpus())
    recall.write(evaluation.run.evaluation / "retrieval.json")
    logger.info(recall_line(recall))
