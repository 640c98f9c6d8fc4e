"""Figures of the training steps as a table: ``metrics.jsonl``, and ``metrics.csv`` for people with a spreadsheet.

``metrics.jsonl`` is append-only and survives a kill at any byte (a torn last line is ignored by the reader). It holds what
belongs to the checkpoint that is there, so a resumed run begins with that one's table; ``events.jsonl`` forgets nothing.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from tunesmith.rundir.atomic import write_text


class MetricsLog:
    """Append-only record of a training run."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: Mapping[str, float]) -> None:
        """Add one flat record as a line of JSON."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")

    def restore(self, table: Path | None) -> None:
        """Begin with the table that a checkpoint brought along, to the byte; with an empty one where there is none."""
        write_text(self.path, "" if table is None else table.read_text(encoding="utf-8"))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole records; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def write_csv(source: Path, target: Path) -> None:
    """Write the records of ``metrics.jsonl`` as one table, empty cells where a record lacks a figure."""
    records = read_metrics(source)
    names = list(dict.fromkeys(name for record in records for name in record))
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(records)
