"""Figures of the training steps as a table: ``metrics.jsonl``, and ``metrics.csv`` for people with a spreadsheet.

``metrics.jsonl`` is append-only and survives a kill at any byte (a torn last line is ignored by the reader). It holds what
belongs to the adapter that is there, so a resumed run forgets what it computes again; ``events.jsonl`` forgets nothing.
"""

import csv
import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """Append-only record of a training run."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add one flat record as a line of JSON."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate_after(self, step: int) -> None:
        """Forget records past ``step``: a resumed run writes them again."""
        earlier = [record for record in read_metrics(self.path) if record["step"] <= step]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in earlier), encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
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
