"""The stages ``evaluate <arm>``: every arm on the sealed test part, kept row by row.

When only the scoring changed, the kept answers are scored anew. Each reading of the test part is written to
``evaluation/test_readings.jsonl``.
"""

import json
import logging
from datetime import UTC, datetime

from tunesmith.evaluate.arms import run_arm
from tunesmith.pipeline.engines import engine_of
from tunesmith.pipeline.evaluation import Evaluation, evaluation_of
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, Recipe
from tunesmith.retrieval.corpus import find
from tunesmith.retrieval.measure import RECALL_AT, figures, told
from tunesmith.rundir import RunDir, fingerprint, read_json, write_json

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, arm: str) -> None:
    """Score an arm on the sealed test part.

    Raises:
        DataError: a row that the metric cannot score.
        RunError: the arm's model is not there.
    """
    evaluation = evaluation_of(run, recipe, session)
    asks_base = arm in PROMPT_ARMS or arm.startswith(EXTERNAL)
    chosen = read_json(run.evaluation / "selection.json")["arms"] if asks_base else {}
    prompts = evaluation.prompts(arm, chosen)
    budget, allowed = evaluation.max_new_tokens, evaluation.allowed
    weights, engine = engine_of(run, recipe, arm, evaluation.base, prompts, budget)
    asked_key = fingerprint(weights, prompts, budget, allowed)
    if arm in ("retrieval", "tuned_retrieval"):
        _report_recall(evaluation)
    folder, price = run.evaluation / arm, evaluation.cost_of(arm)
    summary = run_arm(folder, engine, asked_key, evaluation.test, prompts, evaluation.metric, budget, allowed, price)
    log_reading(run, arm, asked_key)
    logger.info(f"evaluate: {_summary_line(arm, summary)}")


def log_reading(run: RunDir, arm: str, key: str) -> None:
    """The test part is sealed; every reading of it is written down."""
    with (run.evaluation / "test_readings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"arm": arm, "key": key[:16], "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")


def _summary_line(arm: str, figures: dict[str, float]) -> str:
    """An arm's result in one line."""
    scored = figures["unscored"] < figures["n"]
    result = f"scores {100 * figures['score']:.1f} of 100" if scored else "has answered, and waits for the judge"
    cost = f", {figures['n'] * figures['cost']:.4g} in all" if "cost" in figures else ""
    return f"{arm} {result}, {figures['ms']:.0f} ms an example{cost}"


def _report_recall(evaluation: Evaluation) -> None:
    """Say whether the right passages are found, before any answer is scored."""

    hits = find(evaluation.documents(), evaluation.test, max(RECALL_AT, evaluation.recipe.evaluate.retrieval.k))
    measured = figures(hits, evaluation.test, evaluation.corpus())
    write_json(evaluation.run.evaluation / "retrieval.json", measured)
    logger.info(told(measured))
