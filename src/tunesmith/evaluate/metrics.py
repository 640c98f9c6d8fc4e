"""How an answer is scored against its reference. Every row gets the same figures, whatever arm answered.

``exact_match``: equal up to case and white space (headline), and equal to the byte (``strict``).
``json``: the object equals the reference's, keys in any order (headline); it parses; it meets the schema; F1 over its
fields (path and value must both be right). An answer may stand in one Markdown code fence: prompted models like to
write one, and to count that against the prompt would flatter the tuned model.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from tunesmith.errors import RecipeError

Score = dict[str, float]
Scorer = Callable[[str, str], Score]

HEADLINE = "score"
TIE_BREAK = {"exact_match": "strict", "json": "field_f1"}

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_UNPARSED = object()


def make_scorer(metric: str, json_schema: Path | None) -> Scorer:
    """The scoring function of a recipe: ``(answer, reference) -> {name: value in 0..1}``; ``score`` is the headline.

    Raises:
        RecipeError: the schema file is missing or not a JSON schema.
    """
    if metric == "exact_match":
        return exact_match
    validator = None if json_schema is None else _load_schema(json_schema)
    return lambda answer, reference: json_score(answer, reference, validator)


def exact_match(answer: str, reference: str) -> Score:
    """Equality up to case and white space, and to the byte."""
    same = " ".join(answer.split()).casefold() == " ".join(reference.split()).casefold()
    return {"score": float(same), "strict": float(answer == reference)}


def json_score(answer: str, reference: str, validator: Draft202012Validator | None) -> Score:
    """Object equality, parse, schema and field F1. A reference that is not JSON is a ``ValueError``."""
    expected = json.loads(reference)
    found = _parse(answer)
    parsed = found is not _UNPARSED
    score = {
        "score": float(parsed and _same(found, expected)),
        "parse": float(parsed),
        "field_f1": _field_f1(found, expected) if parsed else 0.0,
    }
    if validator is not None:
        score["schema"] = float(parsed and validator.is_valid(found))
    return score


def _parse(answer: str) -> Any:
    fenced = _FENCE.fullmatch(answer)
    try:
        return json.loads(fenced.group(1) if fenced else answer)
    except (ValueError, RecursionError):
        return _UNPARSED


def _same(found: Any, expected: Any) -> bool:
    """Equality of JSON values: 1 is not true."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _fields(value: Any, path: str = "$") -> Counter[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return sum((_fields(child, f"{path}.{key}") for key, child in value.items()), Counter())
    if isinstance(value, list) and value:
        return sum((_fields(child, f"{path}[]") for child in value), Counter())
    return Counter([(path, json.dumps(value))])


def _field_f1(found: Any, expected: Any) -> float:
    have, want = _fields(found), _fields(expected)
    return 2 * (have & want).total() / (have.total() + want.total())


def _load_schema(path: Path) -> Draft202012Validator:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"task.json_schema: {path} is not a JSON schema: {reason}", "draft 2020-12 is expected") from error
    return Draft202012Validator(schema)
