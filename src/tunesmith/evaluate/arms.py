"""Run an arm: ask every row, score every answer, keep all of it.

All outputs are kept, row by row, so that a verdict or a page can be made again without asking anybody. They are kept
beside the fingerprint of what was asked of whom: when only the scoring changed, the kept answers are scored anew and no
model is asked. A row that could not be scored (a judge's answer that says nothing) has the score NaN, written as null;
it is left out of every mean and counted beside it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.engines.engine import Answer, Constraint, Engine, Message
from tunesmith.evaluate.metrics import HEADLINE, Metric
from tunesmith.recipe import TokenPrice
from tunesmith.rundir import read_json, read_rows, write_json, write_rows
from tunesmith.tracking import progress

Outputs = list[dict[str, Any]]
NOT_FIGURES = {"id", "prompt", "output", "reference", "seconds"}
ANSWERED = ("id", "prompt", "output", "reference", "prompt_tokens", "new_tokens", "seconds", "finished")


def ask(
    title: str,
    engine: Engine,
    ids: list[str],
    prompts: list[list[Message]],
    references: list[str],
    metric: Metric,
    max_new_tokens: int,
    allowed: Constraint | None = None,
    price: Callable[[Answer], float] | None = None,
) -> Outputs:
    """Answers and scores of one way of asking, a record a row.

    Args:
        allowed: what the engine holds every answer to (``task.constrained``).
        price: cost of an answer; a record then has ``cost``.
    """
    with progress(title, len(prompts)) as bar:
        answers = engine.generate(prompts, max_new_tokens, lambda done: bar.advance(done), allowed)
    return [
        {
            "id": row_id,
            "prompt": prompt,
            "output": answer.text,
            "reference": reference,
            **metric.score(answer.text, reference),
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
            "seconds": answer.seconds,
            "finished": answer.finished,
            **({} if price is None else {"cost": price(answer)}),
        }
        for row_id, prompt, answer, reference in zip(ids, prompts, answers, references, strict=True)
    ]


def summary(outputs: Outputs, metric: Metric | None = None) -> dict[str, float]:
    """An arm's figures: ``n`` rows, ``unscored`` among them, the mean of every figure over the rows that have it (a
    corpus metric's headline over the scored rows), and milliseconds an example."""
    names = [name for name in outputs[0] if name not in NOT_FIGURES]
    means = {name: _mean([row[name] for row in outputs]) for name in names}
    if metric is not None:
        means[HEADLINE] = metric.headline(outputs)
    unscored = sum(math.isnan(row[HEADLINE]) for row in outputs)
    return {"n": len(outputs), "unscored": unscored, **means, "ms": 1000.0 * _mean([row["seconds"] for row in outputs])}


def by_tokens(price: TokenPrice) -> Callable[[Answer], float]:
    """Cost of an endpoint's answer, in the price's currency."""
    return lambda answer: (
        1e-6 * (answer.prompt_tokens * price.prompt_per_million + answer.new_tokens * price.output_per_million)
    )


def by_time(price_per_hour: float) -> Callable[[Answer], float]:
    """Cost of an answer of this machine: the hours it took."""
    return lambda answer: answer.seconds / 3600.0 * price_per_hour


def run_arm(
    folder: Path,
    make_engine: Callable[[], Engine],
    asked_key: str,
    rows: list[dict[str, Any]],
    prompts: list[list[Message]],
    metric: Metric,
    max_new_tokens: int,
    allowed: Constraint | None = None,
    price: Callable[[Answer], float] | None = None,
) -> dict[str, float]:
    """Ask an arm all test rows; writes ``outputs.jsonl`` and ``scores.json`` into ``folder`` (``evaluation/<arm>``).

    Args:
        asked_key: fingerprint of everything the answers follow from. Answers that are kept under the same one are scored
            anew, be they another arm's: a search that ends with the few-shot prompt need not ask it twice.

    Returns:
        The arm's ``summary``.
    """
    references = [row["messages"][-1]["content"] for row in rows]
    kept = [
        scores.parent for scores in sorted(folder.parent.glob("*/scores.json")) if read_json(scores).get("key") == asked_key
    ]
    if kept:
        outputs = [_scored(row, metric, price) for row in read_outputs(kept[0])]
    else:
        engine = make_engine()
        try:
            ids = [row["id"] for row in rows]
            outputs = ask(folder.name, engine, ids, prompts, references, metric, max_new_tokens, allowed, price)
        finally:
            engine.close()
    return write_outputs(folder, asked_key, outputs, metric)


def write_outputs(folder: Path, asked_key: str, outputs: Outputs, metric: Metric) -> dict[str, float]:
    """Write the records and their figures, NaN as null; returns the figures."""
    write_rows(folder / "outputs.jsonl", [_without_nan(row) for row in outputs])
    figures = summary(outputs, metric)
    write_json(folder / "scores.json", {"key": asked_key, **_without_nan(figures)})
    return figures


def read_outputs(folder: Path) -> Outputs:
    """The records of an arm; a figure that is null in the file is NaN."""
    rows = read_rows(folder / "outputs.jsonl")
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()}


def _scored(row: dict[str, Any], metric: Metric, price: Callable[[Answer], float] | None) -> dict[str, Any]:
    answered = {name: row[name] for name in ANSWERED}
    first = {name: answered.pop(name) for name in ("id", "prompt", "output", "reference")}
    answer = Answer(row["output"], row["prompt_tokens"], row["new_tokens"], row["seconds"], row["finished"])
    cost = {} if price is None else {"cost": price(answer)}
    return {**first, **metric.score(row["output"], row["reference"]), **answered, **cost}


def _mean(values: list[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return float(np.mean(present)) if present else math.nan
