"""The ledger of test readings: which adapters and prompts have answered which sealed rows, over all runs of a user.

A test part that is asked until somebody passes is no test: of 20 adapters that are all as good as the prompt, one is deployed
21 times in 100. No run sees that from inside, so every reading is written down twice, in the run (``readings/``) and in the
user's data folder (``hardware.data_dir()``), in the same form: a file a test part, its rows in the first line, a reading a line
after it.

**What counts as the same test.** Parts that have a row in common. Another seed of the split, a raised ``data.test_fraction`` or
a few more rows make another part, and hide nothing. A row is what its user turns ask and its answer; the system turn is no part
of it, since rewording it is what one tries. Refused: the hash of the whole part alone (a new seed starts at nothing); counting
a part that shares a tenth of its rows for a tenth (no theorem stands behind that; counted whole, an error is on the safe side).

A line is appended under the kernel's lock and flushed before the first question is asked, so a crash costs no reading: at worst
one is counted that nobody saw. A line that a crash tore is left where it is, and said aloud. Refused: one JSON file (rewriting
it can lose what was there), a database (a person wants to read it).

Cost: 17 bytes a row for each test part, and a flush an arm.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tunesmith.errors import RunError
from tunesmith.rundir.atomic import fingerprint
from tunesmith.rundir.file_lock import lock
from tunesmith.rundir.records.readings import TestPart, TestReading
from tunesmith.rundir.rows import Row


class Found(NamedTuple):
    """What a ledger knows of a test part.

    Attributes:
        readings: of every part with a row in common, as they stand.
        unreadable: ``file:line`` of lines that are torn or of another version.
    """

    readings: list[TestReading]
    unreadable: list[str]


def part_of(rows: Sequence[Row]) -> TestPart:
    """The test part that these rows are."""
    hashes = tuple(sorted({_row_hash(row) for row in rows}))
    return TestPart(key=fingerprint(hashes)[:16], rows=hashes)


class Ledger:
    """The files of one folder; nothing is made before the first reading is booked."""

    def __init__(self, directory: Path):
        self.directory = directory

    def book(self, part: TestPart, *readings: TestReading) -> None:
        """Append readings of a part.

        Raises:
            OSError: the place cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{part.key}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            lock(file.fileno())
            content = file.read()
            known = [line for line in content.splitlines() if isinstance(_line(line), TestPart)]
            lines = [*([] if known else [part]), *readings]
            torn = b"" if not content or content.endswith(b"\n") else b"\n"
            file.write(torn + b"".join(json.dumps(line.to_json()).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def find(self, part: TestPart) -> Found:
        """Every reading of a part that has a row in common with this one.

        Raises:
            OSError: the place cannot be read.
        """
        rows, found = set(part.rows), Found([], [])
        if not self.directory.exists():
            return found
        for path in sorted(self.directory.iterdir()):
            if path.suffix == ".jsonl":
                _collect(path, rows, found)
        return found


def _collect(path: Path, rows: set[str], found: Found) -> None:
    lines = [(number, _line(line)) for number, line in enumerate(path.read_bytes().splitlines(), start=1)]
    parts = [line for _, line in lines if isinstance(line, TestPart)]
    if parts and rows.isdisjoint(parts[0].rows):
        return
    found.readings.extend(line for _, line in lines if isinstance(line, TestReading))
    found.unreadable.extend(f"{path}:{number}" for number, line in lines if line is None)


def _line(line: bytes) -> TestPart | TestReading | None:
    """What a line is; None for one that is torn or of another version."""
    for kind in (TestReading, TestPart):
        try:
            record = kind.parse(line)
        except RunError:
            continue
        return record if record.version == kind.VERSION else None
    return None


def _row_hash(row: Row) -> str:
    asked = [turn["content"] for turn in row.messages[:-1] if turn["role"] == "user"]
    return fingerprint(asked, row.messages[-1]["content"])[:16]
