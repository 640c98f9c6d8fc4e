"""Label Studio's JSON and Argilla's exported records: what was shown, and what the annotators said of it.

A row is learned where it has one answer. Annotators who disagree, or nobody who answered, are a person's decision and make a
bad row; a suggestion of Argilla's is a model's and never taken for an answer.
"""

from typing import Any

from tunesmith.data.dialects.beside import NAMES
from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

LABEL_STUDIO_NOTE = "label_studio: the text of a Label Studio task is asked, the choice or text of its annotation answered"
LABEL_STUDIO_READS = ("data", "annotations")
ARGILLA_NOTE = "argilla: the field of an Argilla record is asked, the submitted response answered; suggestions are not read"
_VALUES = ("choices", "text", "labels")
_FIELDS = ("prompt", "instruction", "question", "text", "input")
_PARTS = frozenset((*_FIELDS, *NAMES))  # two of them make one question, in a way that only its owner knows
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
        RowError: no annotation, several answers or parts of a question, or no text to ask.
    """
    texts = {name: value for name, value in row["data"].items() if isinstance(value, str) and value.strip()}
    name = next((name for name in _FIELDS if name in texts), next(iter(texts)) if len(texts) == 1 else None)
    if len(parts := [name for name in texts if name in _PARTS]) > 1:
        raise _several_parts(parts, "data")
    if name is None:
        problem = f"expected one text in data, found {', '.join(row['data']) or 'nothing'}"
        hint = "export as CSV from Label Studio, and name the columns: --column prompt=NAME --column completion=NAME"
        raise RowError("$.data", "missing-column", problem[:200], hint)
    said.update(f"label_studio: {other} of data is not read" for other in row["data"] if other != name)
    answers: list[str] = []
    questions: set[str] = set()
    for annotation in row["annotations"]:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        found: list[str] = []
        for result in _listed(annotation.get("result")):
            answer = _value(result)
            if answer is None:
                said.add(f"label_studio: a {_kind(result)} of an annotation is not read")
                continue
            found.append(answer)
            questions.add(str(result.get("from_name", "")))
        if len(found) > 1 or len(questions) > 1:
            names = f" ({', '.join(sorted(questions))})" if any(questions) else ""
            problem = f"answers to {max(len(found), len(questions))} questions in one task{names}"
            hint = "keep the results of one question, or write all into one text, such as a JSON object"
            raise RowError("$.annotations", "several-answers", problem, hint)
        answers += found
    return _pair(f"$.data.{name}", texts[name], "$.annotations", answers)


def _several_parts(names: list[str], where: str) -> RowError:
    problem = f"{where} holds {len(names)} parts of a question: {', '.join(names):.120}"
    hint = f"write what is asked as one text, under one of these names, and remove the other{'s' if len(names) > 2 else ''}"
    return RowError("$.data" if where == "data" else "$", "several-questions", problem, hint)


def _kind(result: Any) -> str:
    """What a result is that is no text."""
    value = result.get("value") if isinstance(result, dict) else None
    return str(result.get("type") or next(iter(value), "result")) if isinstance(value, dict) else "result"


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
        RowError: no submitted response, several answers or parts of a question, or no field to ask.
    """
    question, field = _names(row)
    if field is None or not isinstance(row[field], str):
        hint = f"name the columns: --column prompt=NAME --column completion={question}.suggestion"
        raise RowError("$", "missing-column", f"which field is asked? found {', '.join(row):.200}", hint)
    parts = [name for name in row if name in _PARTS and isinstance(row[name], str) and row[name].strip()]
    if len(parts) > 1:
        raise _several_parts(parts, "the record")
    answered = [name for name in row if str(name).endswith(".responses") and _holds_text(row[name])]
    if len(answered) > 1:
        problem = f"answers to {len(answered)} questions in one record: {', '.join(answered):.120}"
        raise RowError("$", "several-answers", problem, "keep the responses of one question, and remove the other columns")
    path = f"$.{question}.responses"
    responses = row[f"{question}.responses"]
    responses = responses if isinstance(responses, list) else [responses]
    status = _listed(row.get(f"{question}.responses.status")) or ["submitted"] * len(responses)
    answers = [text for text, state in zip(responses, status, strict=False) if state == "submitted" and isinstance(text, str)]
    suggestion = f"{question}.suggestion"
    other = f"--column prompt={field} --column completion={suggestion}" if suggestion in row else ""
    return _pair(f"$.{field}", row[field], path, answers, other)


def _holds_text(responses: Any) -> bool:
    return any(isinstance(text, str) for text in (responses if isinstance(responses, list) else [responses]))


def _names(row: Any) -> tuple[str, str | None]:
    """The question of a record, and its field."""
    questions = [str(name) for name in row if str(name).endswith(".responses")]
    question = next((name for name in questions if _holds_text(row[name])), questions[0]).removesuffix(".responses")
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
