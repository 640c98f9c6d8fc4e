"""One thing about the data that a person should look at: how often, in which rows, and what to do.

The collectors that read the rows in passing (``answers``, ``personal``, ``sample``) know rows only by their number in
reading order; ids and places are looked up once, at the end, for the few rows that are shown. Whatever text is shown
goes through ``excerpt``, which masks secrets: a report is read by more people than the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.data.personal import masked
from tunesmith.rundir.records.quality import CheckFinding, RowExcerpt, RowPlace, Severity

SHOWN = 20  # examples of one finding
_EXCERPT = 80  # characters
_SCANNED = 20_000  # characters searched for secrets before cutting an excerpt: far more than a key is long


@dataclass(frozen=True, slots=True)
class Example:
    """A row that shows a finding.

    Attributes:
        row: number in reading order, from 0.
        excerpt: a few characters of it, masked; empty where the place alone says it.
        same_as: number of an earlier row that it repeats or contradicts.
    """

    row: int
    excerpt: str = ""
    same_as: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, in how many rows out of how many.

    Attributes:
        code: stable name, e.g. ``exact-duplicates``.
        severity: ``wrong`` (these rows teach something false or leak), ``suspect`` (look at them), ``note``.
        text: one sentence without the number of rows.
        count: rows concerned.
        of: rows that could have been.
        hint: the next thing to do.
        examples: up to ``SHOWN``, the worst first where there is a worst.
    """

    code: str
    severity: Severity
    text: str
    count: int
    of: int
    hint: str
    examples: list[Example] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Part of the rows concerned, 0 to 1."""
        return self.count / self.of if self.of else 0.0


def excerpt(text: str, tail: bool = False) -> str:
    """The first (or last) 80 characters on one line: secrets masked, lone surrogates written as escapes."""
    scanned = masked(text[-_SCANNED:] if tail else text[:_SCANNED])
    cut = f"...{scanned[-_EXCERPT:]}" if tail and len(scanned) > _EXCERPT else scanned[: None if tail else _EXCERPT]
    if not tail and (len(scanned) > _EXCERPT or len(text) > _SCANNED):
        cut += "..."
    return cut.replace("\r", "\\r").replace("\n", "\\n").encode("utf-8", "backslashreplace").decode()


def examples(rows: np.ndarray | Sequence[int]) -> list[Example]:
    """The first rows of ``rows``, by place alone."""
    return [Example(int(row)) for row in rows[:SHOWN]]


def recorded(finding: Finding, places: dict[int, RowPlace]) -> CheckFinding:
    """The finding as a record.

    Args:
        places: of all rows that its examples name.
    """
    examples = [
        RowExcerpt(
            id=places[example.row].id,
            place=places[example.row].place,
            excerpt=example.excerpt,
            same_as=None if example.same_as is None else places[example.same_as],
        )
        for example in finding.examples
    ]
    return CheckFinding(
        code=finding.code,
        severity=finding.severity,
        text=finding.text,
        count=finding.count,
        of=finding.of,
        hint=finding.hint,
        examples=tuple(examples),
    )
