"""The task on dev rows that parity asks every form, and a sweep every type."""

from tunesmith.data.split import groups_of
from tunesmith.engines.engine import Engine
from tunesmith.engines.open import context_for, output_constraint
from tunesmith.evaluate.arms import ask, declared_tools
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.prompts import tuned
from tunesmith.parity.task import Task
from tunesmith.pipeline.base import base_of
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.parity import TaskScore
from tunesmith.rundir.rows import Row


def dev_task(run: RunDir, recipe: Recipe, most: int) -> Task | str:
    """At most so many dev rows to answer, or why there are none."""
    if recipe.task.metric == "judge":
        return "a judge compares two answers and scores none by itself"
    metric = make_metric(recipe.task)
    scored = [row for row in read_rows(run.data / "dev.jsonl") if row.why_not_scored(metric.score_calls is not None) is None]
    rows = spread([row for row in scored if metric.fits(row.reference)], most)
    groups = groups_of(rows)
    if len(set(groups)) < 2:
        return f"{len(rows)} dev rows can be scored, of one group; an interval needs two"
    prompts = [tuned(recipe, row) for row in rows]
    budget, allowed = Rendered.read(run.rendered_file).max_new_tokens, output_constraint(recipe.task)

    def answers(title: str, engine: Engine) -> list[Output]:
        return ask(f"parity {title}", engine, rows, prompts, metric, budget, allowed)

    def score(outputs: list[Output]) -> float:
        figure = metric.headline(outputs)
        assert figure is not None  # only a judge leaves rows unscored
        return figure

    def against(outputs: list[Output], reference: list[Output]) -> TaskScore:
        c = compare(outputs, reference, metric, groups)
        return TaskScore(score=score(outputs), gain=c.gain, low=c.low, high=c.high, n=c.n)

    return Task(
        metric=metric.name,
        n=len(rows),
        context=context_for(base_of(run, recipe).renderer, prompts, budget, declared_tools(rows, metric)),
        margin=recipe.task.min_gain / 2,
        ask=answers,
        score=score,
        compare=against,
    )


def text_rows(run: RunDir) -> list[Row]:
    """Dev rows that ask for a text: no plain texts, no tool calls."""
    return [row for row in read_rows(run.data / "dev.jsonl") if row.why_not_scored() is None]


def spread(rows: list[Row], count: int) -> list[Row]:
    """``count`` rows from front to back, or all."""
    return rows if len(rows) <= count else [rows[number * len(rows) // count] for number in range(count)]
