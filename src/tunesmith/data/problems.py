"""What is wrong with rows: one problem of one row, the count of them all, and the file where bad rows are kept.

The first 20 are shown in full and the rest are counted by code: a list of 40,000 lines is read by nobody, and the code
is what groups them. Memory does not grow with the number of problems. A row has one problem at a time: what follows a
wrong turn (roles out of step from there on) is noise until that turn is mended. Nothing is repaired: a repaired row is a
row that nobody looked at.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import DataError
from tunesmith.rundir.records.check import RejectedRow, RowProblem

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one row.

    Attributes:
        place: as ``Row.place``.
        path: JSON path of the value, ``$`` for the whole row.
        code: stable name of the kind of problem, e.g. ``role-order``.
        message: what was found, and what was expected.
        hint: the next thing to do.
    """

    place: str
    path: str
    code: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.place}, {self.path}: {self.message} [{self.code}]\n    hint: {self.hint}"


class RowError(Exception):
    """One thing wrong with the row at hand; the reader adds the place.

    Args:
        path: JSON path of the value, ``$`` for the whole row.
        code: stable name of the kind of problem.
        message: what was found, and what was expected.
        hint: the next thing to do.
    """

    def __init__(self, path: str, code: str, message: str, hint: str):
        super().__init__(message)
        self.path = path
        self.code = code
        self.message = message
        self.hint = hint

    def at(self, place: str) -> Problem:
        """The problem with its place."""
        return Problem(place, self.path, self.code, self.message, self.hint)


class Unreadable(Exception):
    """A row that never became a value: a line that is too long, a cell that is not UTF-8.

    Args:
        bad: what is wrong.
        raw: the beginning of the row as it stands in the file, for people.
    """

    def __init__(self, bad: RowError, raw: bytes):
        super().__init__(bad.message)
        self.bad = bad
        self.raw = raw


class ProblemLog:
    """Problems of one reading.

    Args:
        rejected: file that receives every bad row with its reasons, or None; without bad rows none is written.
    """

    def __init__(self, rejected: Path | None):
        self.first: list[Problem] = []
        self.by_code: Counter[str] = Counter()
        self._target = rejected
        self._file: IO[str] | None = None

    @property
    def total(self) -> int:
        """Number of bad rows so far."""
        return self.by_code.total()

    def add(self, problem: Problem, raw: Any) -> None:
        """Count one problem; ``raw`` is the row's bytes, or its value where the file has no text of it."""
        self.by_code[problem.code] += 1
        if len(self.first) < SHOWN:
            self.first.append(problem)
        if self._target is None:
            return
        if self._file is None:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._target.open("w", encoding="utf-8", newline="\n")
        reason = RowProblem(path=problem.path, code=problem.code, message=problem.message, hint=problem.hint)
        text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else None
        row = RejectedRow(place=problem.place, problems=(reason,), raw=text, row=None if text is not None else raw)
        # ASCII, so that half of a surrogate pair can be written down.
        self._file.write(json.dumps(row.to_json(), default=_text) + "\n")

    def close(self) -> None:
        """Finish the file of rejected rows."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def way_out(self) -> str:
        """What to do where every row is bad: the hint of them all, where they have one kind of problem."""
        hints = {problem.hint for problem in self.first}
        return f"every row is bad: {hints.pop()}" if len(hints) == 1 else "every row is bad; mend the data"

    def error(self, source: str, good: int, hint: str) -> DataError:
        """The first problems in full, the rest counted, as an error."""
        counts = ", ".join(f"{code} {count:,}" for code, count in self.by_code.most_common())
        lines = [f"{source}: {self.total:,} bad rows, {good:,} good ones ({counts})", *map(str, self.first)]
        if self.total > len(self.first):
            lines.append(f"... and {self.total - len(self.first):,} more")
        return DataError("\n".join(lines), hint)


def _text(value: Any) -> str:
    """Values of a Parquet file that JSON has not: dates as text; of a picture its size, as nobody reads a megabyte of bytes."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
