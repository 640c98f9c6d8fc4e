"""Columns of published data sets under other names than ours, and a guess at the line that names any others.

A name is taken for ours where a published data set made it known: Dolly's ``response``, ms-swift's ``query``, GSM8K's
``question``. Names that say less (``input`` and ``output``, ``text`` and ``label``) are proposed and not taken: read the wrong
way round they train the questions.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.data.dialects.beside import named


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """A published set of names.

    Attributes:
        name: of the format.
        base: the format of ours that it is.
        columns: our names to theirs.
        needed: theirs that make it this format.
        never: theirs beside which it is something else.
        note: what is said of it.
    """

    name: str
    base: str
    columns: Mapping[str, str]
    needed: tuple[str, ...]
    note: str
    never: tuple[str, ...] = ()


PUBLISHED = (
    ColumnNames(
        "dolly",
        "alpaca",
        {"instruction": "instruction", "input": "context", "output": "response", "system": "system", "history": "history"},
        ("instruction", "response"),
        "dolly: instruction and context are joined by a line break, response is the answer",
        ("input", "output"),
    ),
    ColumnNames(
        "query_response",
        "alpaca",
        {"instruction": "query", "output": "response", "system": "system", "history": "history"},
        ("query", "response"),
        "query_response (ms-swift): query is the user's turn, response the assistant's, history before them",
    ),
    ColumnNames(
        "question_answer",
        "alpaca",
        {"instruction": "question", "input": "context", "output": "answer", "system": "system"},
        ("question", "answer"),
        "question_answer: question, and context where there is one, are joined by a line break",
        ("choices", "options"),
    ),
    ColumnNames(
        "prompt_response",
        "prompt_completion",
        {"prompt": "prompt", "completion": "response", "system": "system", "tools": "tools", "history": "history"},
        ("prompt", "response"),
        "prompt_response: prompt is the user's turn, response the assistant's",
        ("completion",),
    ),
)
_SURE_ASKED = ("prompt", "instruction", "question", "query", "request", "user", "human", "problem")
_SURE_ANSWERED = ("completion", "response", "output", "answer", "reply", "assistant", "target", "solution")
_ASKED = (*_SURE_ASKED, *("input", "inputs", "q", "source", "sentence", "document", "article", "dialogue", "text", "title"))
_ANSWERED = (
    *_SURE_ANSWERED,
    *("outputs", "answers", "targets", "a", "summary", "highlights", "translation", "sql", "code"),
    *("label", "labels", "category", "class", "kind"),
)


def published(row: Mapping[str, Any]) -> ColumnNames | None:
    """The published names that a row without nulls has."""
    for names in PUBLISHED:
        if all(name in row for name in names.needed) and not any(name in row for name in names.never):
            return names
    return None


def answer_hint(row: Mapping[str, Any], missing: str) -> str:
    """``, or name the columns: ...`` where a row without our column has one that may be it; nothing otherwise."""
    words = _SURE_ASKED if missing in ("prompt", "instruction") else _SURE_ANSWERED
    other = next((name for name in row if str(name).lower() in words), None)
    kept = next((name for name in ("prompt", "instruction", "completion", "output") if name in row and name != other), None)
    if other is None or kept is None:
        return ""
    asked, answered = (other, kept) if missing in ("prompt", "instruction") else (kept, other)
    return f", or {hint_with(asked, answered, row)}"


def columns_named(asked: str, answered: str, names: Iterable[str]) -> str:
    """The options that name the columns of a question, all that belongs to it, and its answer."""
    return _options(named(asked, answered, names)[0])


def _options(columns: Mapping[str, str]) -> str:
    return " ".join(f"--column {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in columns.items())


def hint_with(asked: str, answered: str, names: Iterable[str]) -> str:
    """``name the columns: ...`` for a question, all that belongs to it, and its answer; and what no name would read."""
    columns, without = named(asked, answered, names)
    recipe = ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.items())
    lost = f"; {', '.join(without)} would not be read: write it into the text of the row first" if without else ""
    return f"name the columns: {_options(columns)}, or data.columns: {{{recipe}}}{lost}"


def naming_hint(names: Iterable[str]) -> str:
    """The option that names the columns of a table: a line that works where the names tell what they are."""
    known = [str(name) for name in names if str(name)]
    by_word = {name.lower().replace(" ", "_"): name for name in reversed(known)}
    asked = next((by_word[word] for word in _ASKED if word in by_word), None)
    answered = next((by_word[word] for word in _ANSWERED if word in by_word and by_word[word] != asked), None)
    if asked is None and answered is None and len(known) == 2:
        asked, answered = known
    if asked is not None and answered is not None:
        return hint_with(asked, answered, known)
    other = ", ".join(known[:12])
    return f"name two columns of {other or 'the table'}: --column prompt=NAME --column completion=NAME"
