"""Marks of good and bad answers, as only the whole file can tell them.

``"label": false`` says of its own row that the answer is a bad one (``preference.py``). A number does not: 0 and 1 are marks
where no row has another number, and classes where one has. And a row without a mark is an ordinary row where no other has
one, and a question to its owner where all others do. So these are counted while rows stream, and settled at the end.
"""

from collections.abc import Mapping

from pydantic import JsonValue

from tunesmith.data import formats, preference
from tunesmith.errors import DataError

_SHOWN = 5  # places of rows without a mark


class Marks:
    """Counts the marks of a reading: ``add`` each row that is no pair of answers, ``refuse`` at the end."""

    def __init__(self) -> None:
        self._key = ""
        self._first: Mapping[str, JsonValue] = {}  # row with a mark
        self._written: set[str] = set()  # how marks are written: true or false, 0 or 1
        self._good = self._bad = 0
        self._class = ""  # a value that is no mark
        self._unmarked = 0
        self._places: list[str] = []  # of the first rows without a mark

    def add(self, row: Mapping[str, JsonValue], place: str) -> bool:
        """Look at a row as it is in the file, without nulls; whether a number marks its answer."""
        key = preference.mark_key(row)
        if key is None:
            self.add_unmarked(1, place)
            return False
        boolean = preference.mark(row, key)
        good = preference.number_mark(row[key]) if boolean is None else boolean
        if good is None:
            self._class = self._class or f"{row[key]!s:.40}"
            return False
        self._key, self._first = self._key or key, self._first or row
        self._written.add("0 or 1" if boolean is None else "true or false")
        self._good += good
        self._bad += not good
        return boolean is None

    def add_unmarked(self, rows: int, place: str) -> None:
        """Count rows that have no mark; ``place`` is that of the first."""
        self._unmarked += rows
        if len(self._places) < _SHOWN:
            self._places.append(place)

    def refuse(self, label: str, *, taken: bool) -> None:
        """Refuse rows whose answers may be bad ones.

        Args:
            label: of the source.
            taken: whether the good answers are asked for (``data.take: chosen``).

        Raises:
            DataError: marks that nobody decided about, marks that are classes, or rows without a mark among marked ones.
        """
        numbers, marked = "0 or 1" in self._written, self._good + self._bad
        if not self._written or (numbers and self._class and not taken):
            return
        key = self._key
        if numbers and self._class:
            message = f"{label}: {key} is 0 or 1 in some rows and {self._class} in others: classes, not marks of answers"
            raise DataError(message, "leave data.take (--take) out")
        if self._unmarked and (taken or not numbers):
            places = ", ".join(self._places) + (", ..." if self._unmarked > len(self._places) else "")
            rows = f"{self._unmarked:,} rows have no {key}" if self._unmarked > 1 else f"one row has no {key}"
            message = f"{label}: {rows} ({places}) beside {marked:,} answers marked {' or '.join(sorted(self._written))}"
            hint = f"write {key} there, or remove these rows"
            raise DataError(message, hint if taken else f"{hint}; then {preference.HINT}")
        if numbers and not taken and self._bad:
            message = f"{label}: {marked:,} rows of preference data (answers marked {key}: 0 or 1, {self._bad:,} of them 0)"
            hint = f"{preference.HINT}; where {key} is a class and every answer is good: {formats.naming(self._first)}"
            raise DataError(message, hint)
