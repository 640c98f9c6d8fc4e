"""JSON answers: does it parse, does it meet the schema, is it the same object, and how many fields are right.

The headline is equality with the reference's object, keys in any order. Beside it: ``parse``, ``schema``, and F1 over
the fields (path and value must both be right). What equal means, and what is no JSON, stands in ``json_values.py``.

An answer may stand in one Markdown code fence, with words around it: prompted models like to write both, whoever asks them
takes the one block out with a line of code, and to count it against the prompt would flatter the tuned model. So may a
byte-order mark. Nothing else is repaired: words around bare JSON, or two blocks, are no JSON.
"""

import json
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.fences import blocks
from tunesmith.evaluate.metrics.json_values import Values
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.recipe import Task


def json_metric(task: Task) -> Metric:
    """The metric of ``task.json_schema``, or of any JSON without one.

    Raises:
        RecipeError: the schema file is missing or no JSON schema.
    """
    validator = None if task.json_schema is None else load_schema(task.json_schema)
    return Metric(name="json", score=lambda a, r: json_score(a, r, validator), tie_break="field_f1", binary=True)


def json_line(task: Task) -> str:
    """What an answer looks like: its keys where the schema names them."""
    schema = {} if task.json_schema is None else json.loads(task.json_schema.read_text(encoding="utf-8"))
    keys = schema.get("properties") or schema.get("required") or ()
    named = f" Its keys: {', '.join(keys)}." if keys else ""
    return f"Answer with one JSON object and nothing else.{named}"


def json_score(answer: str, reference: str, validator: Draft202012Validator | None) -> Score:
    """Object equality, parse, schema and field F1. A reference that is not JSON is a ``ValueError``."""
    values = Values()
    expected = values.read(json_text(reference))
    try:
        value = values.read(json_text(answer))
    except ValueError:
        score = {"score": 0.0, "parse": 0.0, "field_f1": 0.0}
    else:
        leaves = values.leaves(value) + values.leaves(expected)
        score = {
            "score": float(value == expected),
            "parse": 1.0,
            "field_f1": 2.0 * values.shared(value, expected) / leaves,
        }
    if validator is not None:
        score["schema"] = float(meets_schema(answer, validator))
    return score


def json_text(answer: str) -> str:
    """What should be JSON in an answer: its one fenced block where there is one, else all of it."""
    text = answer.removeprefix("\ufeff").strip()
    fenced = blocks(text)
    return fenced[0].text.removeprefix("\ufeff").strip() if len(fenced) == 1 else text


def meets_schema(answer: str, validator: Draft202012Validator) -> bool:
    """Whether an answer parses and meets a schema; what is nested past Python's limit of recursion meets none."""
    text = json_text(answer)
    try:
        Values().read(text)
        return validator.is_valid(json.loads(text))
    except (ValueError, RecursionError, OverflowError):
        return False


def load_schema(path: Path) -> Draft202012Validator:
    """The validator of a schema file.

    Raises:
        RecipeError: the file is missing or not a JSON schema.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"task.json_schema: {path} is not a JSON schema: {reason}", "draft 2020-12 is expected") from error
    return Draft202012Validator(schema)
