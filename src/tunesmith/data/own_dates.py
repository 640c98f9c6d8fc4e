"""Rows that say which day it is, under a template that says so too.

A system text of "Today is 3 May 2024", from the log that a row was made of, stands beside the date that the template writes
into every row: the model is shown two days and learns to heed neither. Only who knows the template can ask this.
"""

import re
from collections.abc import Sequence

from tunesmith.data.finding import SHOWN, Example, Finding, excerpt
from tunesmith.rundir.rows import Row

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = (
    rf"\d{{4}}-\d\d?|\d{{1,2}}[./]\d{{1,2}}[./]\d{{2}}|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}|{_MONTH}\s+\d|\d{{4}}/\d"
)
_SAID = r"today|current (?:date|time|day)|date(?: today)?:|(?:date|day) is|knowledge (?:date|cutoff)"
_DATE = re.compile(rf"\b(?:{_SAID})[^\n]{{0,24}}?(?:{_DAY})", re.IGNORECASE)


class OwnDates:
    """Collects such rows: ``add`` each batch, then ``finding``.

    Args:
        written: the date that the template writes; None where it writes none, and then nothing is found.
    """

    def __init__(self, written: str | None):
        self._written = written
        self._count = self._rows = 0
        self._examples: list[Example] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Look at the next rows."""
        for number, row in enumerate(rows, self._rows) if self._written is not None else ():
            system = row.messages[0]
            match = _DATE.search(system["content"]) if system["role"] in ("system", "developer") else None
            if match is not None:
                self._count += 1
                if len(self._examples) < SHOWN:
                    self._examples.append(Example(number, excerpt(match[0])))
        self._rows += len(rows)

    def finding(self) -> list[Finding]:
        """The finding, where there is one."""
        if not self._count:
            return []
        text = f"rows whose system text names a date, where the chat template writes another one (here {self._written})"
        hint = "Remove the date from the rows: a run keeps the day of its first rendering and exports it with the model."
        return [Finding("own-date", "wrong", text, self._count, self._rows, hint, self._examples)]
