"""How an answer is scored against its reference. Every row gets the same figures, whatever arm answered.

    exact_match               equal on a ladder of normalisations; strict equality beside it        text.py
    classification, macro_f1  fixed labels and an explicit invalid class                            labels.py
    json                      the same object; parse, schema, field F1                              json_object.py
    rouge, bleu               by rouge-score and sacrebleu; BLEU is of the whole arm                overlap.py
    numeric                   the last number, within a tolerance                                   numeric.py
    regex                     a pattern is found, or what it extracts equals the reference's        pattern.py
    code                      the reference's tests pass, in a sandbox                              code_tests.py
    python                    a function of the user's                                              user_function.py
    judge                     deterministic checks here; a model compares in ``evaluate/judge.py``

A literal chain of ``if`` and no registry: who wants another metric writes a function and names it in the recipe.
"""

from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.json_object import json_score, load_schema, meets_schema
from tunesmith.evaluate.metrics.labels import classification
from tunesmith.evaluate.metrics.metric import HEADLINE, Metric, Score
from tunesmith.evaluate.metrics.numeric import numeric_score
from tunesmith.evaluate.metrics.text import exact_match
from tunesmith.recipe import Task
from tunesmith.rundir import sha256_file

__all__ = ["HEADLINE", "Metric", "Score", "make_metric", "scoring"]

NAN = float("nan")


def make_metric(task: Task) -> Metric:
    """The metric of a recipe.

    Raises:
        RecipeError: a file of the recipe (schema, tests, function) is missing or wrong, a bad pattern, labels alike, or
            programs that nobody agreed to run.
        MissingPackage: ROUGE or BLEU without their packages.
    """
    if task.metric == "exact_match":
        return Metric("exact_match", exact_match, None, tie_break="strict", binary=True)
    if task.metric in ("classification", "macro_f1") and task.labels is not None:
        return classification(task.metric, task.labels)
    if task.metric == "json":
        validator = None if task.json_schema is None else load_schema(task.json_schema)
        return Metric("json", lambda a, r: json_score(a, r, validator), None, tie_break="field_f1", binary=True)
    if task.metric == "numeric":
        tolerance = task.tolerance
        return Metric("numeric", lambda a, r: numeric_score(a, r, tolerance), None, tie_break="found", binary=True)
    if task.metric == "rouge":
        from tunesmith.evaluate.metrics.overlap import rouge

        return rouge()
    if task.metric == "bleu":
        from tunesmith.evaluate.metrics.overlap import bleu

        return bleu()
    if task.metric == "regex" and task.pattern is not None:
        from tunesmith.evaluate.metrics.pattern import Pattern

        return Metric("regex", Pattern(task.pattern).score, None, tie_break="score", binary=True)
    if task.metric == "code" and task.tests is not None:
        if not task.allow_code:
            raise RecipeError(
                "task.metric: code runs programs that a model wrote, on this machine",
                "they run confined, without network; agree with task.allow_code: true",
            )
        from tunesmith.evaluate.metrics.code_tests import code_metric

        return code_metric(task.tests)
    if task.metric == "python" and task.function is not None:
        from tunesmith.evaluate.metrics.user_function import user_function

        return user_function(task.function)
    if task.metric == "judge":
        return _judge_metric(task)
    raise RecipeError(f"task.metric: {task.metric} lacks a key of its own", "tunesmith schema prints every key")


def scoring(task: Task) -> dict[str, Any]:
    """What decides a score, for fingerprints: the metric's keys, and the content of its files."""
    files = [task.json_schema, task.tests, task.judge.human_labels]
    if task.function is not None:
        files.append(Path(task.function.rpartition(":")[0]))
    keys = {"metric", "constrained", "labels", "tolerance", "pattern", "function", "judge"}
    said = task.model_dump(mode="json", include=keys)
    return {**said, "files": [sha256_file(file) if file and file.exists() else None for file in files]}


def checks(task: Task) -> dict[str, Any]:
    """The deterministic checks that run before a judge: name -> ``(answer) -> bool``.

    ``blank``: the answer says something; ``schema`` and ``pattern`` where the recipe has them.
    """
    found: dict[str, Any] = {"blank": lambda answer: bool(answer.strip())}
    if task.json_schema is not None:
        validator = load_schema(task.json_schema)
        found["schema"] = lambda answer: meets_schema(answer, validator)
    if task.pattern is not None:
        from tunesmith.evaluate.metrics.pattern import Pattern

        found["pattern"] = Pattern(task.pattern).holds
    return found


def _judge_metric(task: Task) -> Metric:
    """Every row is unscored until ``judge.judge_arm`` has compared it; the checks are figures at once."""
    required = checks(task)

    def score(answer: str, reference: str) -> Score:
        if not all(check(reference) for check in required.values()):
            raise ValueError(f"{reference[:80]!r} fails the checks of its own task")
        return {"score": NAN, "checks": float(all(check(answer) for check in required.values()))}

    return Metric("judge", score, None, tie_break="checks", binary=False)
