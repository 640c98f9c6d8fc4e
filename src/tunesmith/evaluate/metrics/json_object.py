"""JSON answers: does it parse, does it meet the schema, is it the same object, and how many fields are right.

The headline is equality with the reference's object, keys in any order. Beside it: ``parse``, ``schema``, and F1 over
the fields (path and value must both be right). An answer may stand in one Markdown code fence: prompted models like to
write one, and to count that against the prompt would flatter the tuned model. Nothing else is repaired.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.recipe import Task

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_UNPARSED = object()


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
    expected = json.loads(reference)
    value = _parse(answer)
    parses = value is not _UNPARSED
    score = {
        "score": float(parses and _same(value, expected)),
        "parse": float(parses),
        "field_f1": _field_f1(value, expected) if parses else 0.0,
    }
    if validator is not None:
        score["schema"] = float(parses and validator.is_valid(value))
    return score


def meets_schema(answer: str, validator: Draft202012Validator) -> bool:
    """Whether an answer parses and meets a schema."""
    value = _parse(answer)
    return value is not _UNPARSED and validator.is_valid(value)


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


def _parse(answer: str) -> Any:
    fenced = _FENCE.fullmatch(answer)
    try:
        return json.loads(fenced.group(1) if fenced else answer)
    except (ValueError, RecursionError):
        return _UNPARSED


def _same(value: Any, expected: Any) -> bool:
    """Equality of JSON values: 1 is not true."""
    return json.dumps(value, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _fields(value: Any, path: str = "$") -> Counter[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return sum((_fields(child, f"{path}.{key}") for key, child in value.items()), Counter())
    if isinstance(value, list) and value:
        return sum((_fields(child, f"{path}[]") for child in value), Counter())
    return Counter([(path, json.dumps(value))])


def _field_f1(value: Any, expected: Any) -> float:
    have, want = _fields(value), _fields(expected)
    return 2 * (have & want).total() / (have.total() + want.total())
