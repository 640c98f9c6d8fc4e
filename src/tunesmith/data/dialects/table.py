"""The dialects of rows, in the order in which they are tried: what makes a row one, what is read of it, what becomes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.data.dialects import annotation, gemini, oasst, openai_logs, responses, squad
from tunesmith.data.draft import Draft


@dataclass(frozen=True, slots=True)
class Dialect:
    """A dialect of rows.

    Attributes:
        name: of the format.
        note: what is said of it.
        matches: whether a row without nulls is one.
        reads: the keys that are read of a row.
        draft: the turns of a row; the set receives what is written otherwise.
    """

    name: str
    note: str
    matches: Callable[[Any], bool]
    reads: Callable[[Any], tuple[str, ...]]
    draft: Callable[[Any, set[str]], Draft]


def _always(names: tuple[str, ...]) -> Callable[[Any], tuple[str, ...]]:
    return lambda row: names


DIALECTS = (
    Dialect("gemini", gemini.NOTE, gemini.matches, _always(gemini.READS), gemini.draft),
    Dialect("responses", responses.NOTE, responses.matches, _always(responses.READS), responses.draft),
    Dialect("openai_log", openai_logs.NOTE, openai_logs.matches, _always(openai_logs.READS), openai_logs.draft),
    Dialect(
        "label_studio",
        annotation.LABEL_STUDIO_NOTE,
        annotation.is_label_studio,
        _always(annotation.LABEL_STUDIO_READS),
        annotation.label_studio,
    ),
    Dialect("argilla", annotation.ARGILLA_NOTE, annotation.is_argilla, annotation.argilla_reads, annotation.argilla),
    Dialect("oasst", oasst.NOTE, oasst.matches, _always(oasst.READS), oasst.draft),
    Dialect(oasst.FLAT, "", oasst.is_flat, _always(oasst.FLAT_READS), oasst.draft),  # trees by the time of a draft
    Dialect("squad", squad.NOTE, squad.matches, _always(squad.READS), squad.draft),
)
BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
# Columns of a table that they read; a record of Argilla names its own.
COLUMNS = frozenset(
    (
        *gemini.READS,
        *responses.READS,
        *openai_logs.READS,
        *annotation.LABEL_STUDIO_READS,
        *oasst.READS,
        *oasst.FLAT_READS,
        *squad.READS,
        "custom_id",
        "context",
        "question",
        "answer",
        "query",
    )
)
