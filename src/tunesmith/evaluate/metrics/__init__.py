"""How an answer is scored against its reference. Every row gets the same figures, whatever arm answered.

``METRICS`` is the table: how the metric of a recipe is made, and what it says of the form of an answer. Which keys of the
recipe a metric reads and needs stands in ``tunesmith.recipe.metrics``, under the same names.

    exact_match               text.py             rouge, bleu    overlap.py
    classification, macro_f1  labels.py           code           code_tests.py
    calibrated                calibrated.py       python         user_function.py
    json                      json_object.py            tool_calls     tool_calls.py
    numeric                   numeric.py          judge          judge_checks.py; a model compares in ``evaluate/judge.py``
    regex                     pattern.py

A new metric is one file here, its line in ``METRICS``, and its line in ``tunesmith.recipe.metrics``. Refused: a registry that
files enter by decorator, which hides what there is from whoever reads this page. Who wants a metric of their own writes a
function and names it in the recipe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from tunesmith.evaluate.metrics.calibrated import calibrated
from tunesmith.evaluate.metrics.code_tests import code
from tunesmith.evaluate.metrics.json_object import json_line, json_metric
from tunesmith.evaluate.metrics.judge_checks import judge
from tunesmith.evaluate.metrics.labels import classification, labels_line
from tunesmith.evaluate.metrics.metric import HEADLINE, Metric, Score
from tunesmith.evaluate.metrics.numeric import number, number_line
from tunesmith.evaluate.metrics.overlap import bleu, rouge
from tunesmith.evaluate.metrics.pattern import regular_expression
from tunesmith.evaluate.metrics.text import exact_match
from tunesmith.evaluate.metrics.tool_calls import tool_calls
from tunesmith.evaluate.metrics.user_function import user_function_metric
from tunesmith.recipe import Task
from tunesmith.rundir import sha256_file
from tunesmith.rundir.records import Json

__all__ = ["HEADLINE", "METRICS", "Metric", "Score", "format_line", "make_metric", "scoring_key"]


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One line of ``METRICS``.

    Attributes:
        make: the metric of a task that has the keys it needs.
        format_line: one sentence that says what an answer looks like, for the search for a prompt.
    """

    make: Callable[[Task], Metric]
    format_line: Callable[[Task], str] = lambda task: "Give the answer alone, without an explanation."


METRICS: dict[str, MetricSpec] = {
    "exact_match": MetricSpec(make=exact_match),
    "classification": MetricSpec(make=classification, format_line=labels_line),
    "macro_f1": MetricSpec(make=classification, format_line=labels_line),
    "calibrated": MetricSpec(make=calibrated, format_line=labels_line),
    "json": MetricSpec(make=json_metric, format_line=json_line),
    "tool_calls": MetricSpec(
        make=tool_calls, format_line=lambda task: "Call the functions that answer the question, or say in words that none does."
    ),
    "rouge": MetricSpec(make=rouge),
    "bleu": MetricSpec(make=bleu),
    "numeric": MetricSpec(make=number, format_line=number_line),
    "regex": MetricSpec(make=regular_expression),
    "code": MetricSpec(make=code),
    "python": MetricSpec(make=user_function_metric),
    "judge": MetricSpec(make=judge),
}


def make_metric(task: Task) -> Metric:
    """The metric of a recipe.

    Raises:
        RecipeError: a file of the recipe (schema, tests, function) is missing or wrong, a bad pattern, labels alike, or
            programs that nobody agreed to run.
        MissingPackage: ROUGE or BLEU without their packages.
    """
    return METRICS[task.metric].make(task)


def format_line(task: Task) -> str:
    """One sentence that says what an answer looks like, from the metric and what it is checked against."""
    return METRICS[task.metric].format_line(task)


def scoring_key(task: Task) -> Json:
    """What decides a score, for fingerprints: the metric's keys, and the content of its files."""
    files = [task.json_schema, task.tests, task.judge.human_labels]
    if task.function is not None:
        files.append(Path(task.function.rpartition(":")[0]))
    keys = {"metric", "constrained", "labels", "tolerance", "pattern", "function", "judge", "target_precision"}
    hashes: list[JsonValue] = [sha256_file(file) if file and file.exists() else None for file in files]
    return {**task.model_dump(mode="json", include=keys), "files": hashes}
