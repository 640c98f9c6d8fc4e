"""Label Studio's JSON and Argilla's exported records: what was shown, and what the annotators said of it.

A row is learned where it has one answer. Annotators who disagree, or nobody who answered, are a person's decision and make a
bad row; a suggestion of Argilla's is a model's and never taken for an answer.
"""

from typing import Any

from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

LABEL_STUDIO_NOTE = "label_studio: the text of a Label Studio task is asked, the choice or text of its annotation answered"
LABEL_STUDIO_READS = ("data", "annotations")
ARGILLA_NOTE = "argilla: the field of an Argilla record is asked, the submitted response answered; suggestions are not read"
_VALUES = ("choices", "text", "labels")
_FIELDS = ("prompt", "instruction", "question", "text", "input")
_ABOUT = (
    "id",
    "status",
    "_server_id",
    "metadata",
    "vectors",
    "inserted_at",
    "updated_at",
    "fields",
    "responses",
    "suggestions",
)


def is_label_studio(row: Any) -> bool:
    """Whether a row is a task of Label Studio."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def label_studio(row: Any, said: set[str]) -> Draft:
    """Question and answer of a task.

    Raises:
        RowError: no annotation, several answers, or no text to ask.
    """
    texts = {name: value for name, value in row["data"].items() if isinstance(value, str) and value.strip()}
    name = next((name for name in _FIELDS if name in texts), next(iter(texts)) if len(texts) == 1 else None)
    if name is None:
        problem = f"expected one text in data, found {', '.join(row['data']) or 'nothing'}"
        hint = "export as CSV from Label Studio, and name the columns: --column prompt=NAME --column completion=NAME"
        raise RowError("$.data", "missing-column", problem[:200], hint)
    answers = [
        _value(result)
        for annotation in row["annotations"]
        if isinstance(annotation, dict) and not annotation.get("was_cancelled")
        for result in _listed(annotation.get("result"))
    ]
    return _pair(f"$.data.{name}", texts[name], "$.annotations", [answer for answer in answers if answer is not None])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _value(result: Any) -> str | None:
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        return None
    if "start" in value or "end" in value:
        raise RowError(
            "$.annotations", "not-text", "a span of the text is labelled", "a span is no answer; write the answer out"
        )
    found = next((value[name] for name in _VALUES if name in value), None)
    if isinstance(found, list) and all(isinstance(text, str) for text in found):
        if len(found) != 1:
            problem = f"{len(found)} choices in one annotation"
            raise RowError("$.annotations", "several-answers", problem, "write the answer as one text, such as a JSON list")
        return found[0]
    return found if isinstance(found, str) else None


def is_argilla(row: Any) -> bool:
    """Whether a row is an exported record of Argilla."""
    return any(str(name).endswith(".responses") for name in row) and not row.keys().isdisjoint(("_server_id", "status", "id"))


def argilla_reads(row: Any) -> tuple[str, ...]:
    """The columns that are read of a record."""
    question, field = _names(row)
    return tuple(name for name in (field, f"{question}.responses", f"{question}.responses.status") if name)


def argilla(row: Any, said: set[str]) -> Draft:
    """Question and answer of a record.

    Raises:
        RowError: no submitted response, several answers, or no field to ask.
    """
    question, field = _names(row)
    if field is None or not isinstance(row[field], str):
        hint = f"name the columns: --column prompt=NAME --column completion={question}.suggestion"
        raise RowError("$", "missing-column", f"which field is asked? found {', '.join(row):.200}", hint)
    path = f"$.{question}.responses"
    responses = row[f"{question}.responses"]
    responses = responses if isinstance(responses, list) else [responses]
    status = _listed(row.get(f"{question}.responses.status")) or ["submitted"] * len(responses)
    answers = [text for text, state in zip(responses, status, strict=False) if state == "submitted" and isinstance(text, str)]
    suggestion = f"{question}.suggestion"
    other = f"--column prompt={field} --column completion={suggestion}" if suggestion in row else ""
    return _pair(f"$.{field}", row[field], path, answers, other)


def _names(row: Any) -> tuple[str, str | None]:
    """The question of a record, and its field."""
    question = next(str(name) for name in row if str(name).endswith(".responses")).removesuffix(".responses")
    fields = [name for name in row if "." not in str(name) and name not in _ABOUT]
    return question, next((name for name in _FIELDS if name in fields), fields[0] if len(fields) == 1 else None)


def _pair(asked: str, question: str, answered: str, answers: list[str], other: str = "") -> Draft:
    if not answers:
        hint = (
            f"to learn the suggestions: {other}" if other else "annotate it or remove the row (--quarantine FILE sets it aside)"
        )
        raise RowError(answered, "no-answer", "nobody answered this row", hint)
    if len(set(answers)) > 1:
        problem = f"{len(set(answers))} different answers: {', '.join(sorted(set(answers))):.80}"
        raise RowError(answered, "several-answers", problem, "decide for one of them")
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answers[0]}]
    return Draft(turns, origins=[(asked, False), (answered, False)], whole="$")
