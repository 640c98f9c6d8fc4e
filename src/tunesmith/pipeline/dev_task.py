"""The task on dev rows that parity asks every form, and a sweep every type."""

from typing import TYPE_CHECKING, Any

from tunesmith.pipeline.engines import context_for, output_constraint
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, read_rows
from tunesmith.rundir.records.parity import TaskScore

if TYPE_CHECKING:
    from tunesmith.engines.engine import Engine
    from tunesmith.evaluate.arms import Outputs
    from tunesmith.parity.task import Task


def dev_task(run: RunDir, recipe: Recipe, most: int) -> "Task | str":
    """At most so many dev rows to answer, or why there are none."""
    from tunesmith.evaluate.arms import ask, summary
    from tunesmith.evaluate.compare import compare
    from tunesmith.evaluate.metrics import HEADLINE, make_metric
    from tunesmith.evaluate.prompts import tuned
    from tunesmith.parity.task import Task

    if recipe.task.metric == "judge":
        return "a judge compares two answers and scores none by itself"
    metric = make_metric(recipe.task)
    rows = spread([row for row in text_rows(run) if metric.fits(row["messages"][-1]["content"])], most)
    groups = None if recipe.data.group_by is None else [row.get("group") or row["id"] for row in rows]
    if len(set(groups or [row["id"] for row in rows])) < 2:
        return f"{len(rows)} dev rows can be scored, of one group; an interval needs two"
    ids, references = [row["id"] for row in rows], [row["messages"][-1]["content"] for row in rows]
    prompts = [tuned(recipe, row) for row in rows]
    budget, allowed = read_json(run.data / "rendered.json")["max_new_tokens"], output_constraint(recipe)

    def answers(title: str, engine: "Engine") -> "Outputs":
        return ask(f"parity {title}", engine, ids, prompts, references, metric, budget, allowed)

    def score(outputs: "Outputs") -> float:
        return summary(outputs, metric)[HEADLINE]

    def against(outputs: "Outputs", reference: "Outputs") -> TaskScore:
        c = compare(outputs, reference, metric, groups)
        return TaskScore(score=score(outputs), gain=c.gain, low=c.low, high=c.high, n=c.n)

    return Task(
        metric=metric.name,
        n=len(rows),
        context=context_for(recipe, prompts, budget),
        margin=recipe.task.min_gain / 2,
        ask=answers,
        score=score,
        compare=against,
    )


def text_rows(run: RunDir) -> list[dict[str, Any]]:
    """Dev rows that ask for a text: no plain texts, no tool calls."""
    rows = read_rows(run.data / "dev.jsonl")
    return [row for row in rows if row.get("kind") != "text" and "tool_calls" not in row["messages"][-1]]


def spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows from front to back, or all."""
    return rows if len(rows) <= count else [rows[number * len(rows) // count] for number in range(count)]
