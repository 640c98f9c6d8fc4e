"""What a run says while it runs: metrics on disk, progress on the terminal.

``metrics.jsonl`` is append-only and survives a kill at any byte (a torn last line is ignored by the reader);
``metrics.csv`` is written from it at the end for people with a spreadsheet. Talk is ``logging``, under the name ``tunesmith``:
the command line alone shows it (``terminal.py``); a library that nobody asked to speak is silent.
"""

import csv
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logging.getLogger("tunesmith").addHandler(logging.NullHandler())  # without it, Python itself prints warnings

console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)


# Joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji are wrong without them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Other people's text for a terminal or a page: unseen characters and lone surrogates written as escapes."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Bar:
    """One progress bar: ``advance`` after each unit of work, with the figures to show beside it."""

    def __init__(self, progress: Progress, total: int, title: str):
        self._progress = progress
        self._task = progress.add_task(title, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count ``steps`` done; ``note`` (loss, tokens/s) replaces the last one."""
        self._progress.update(self._task, advance=steps, note=note)


@contextmanager
def progress(title: str, total: int) -> Iterator[Bar]:
    """A bar with count, note, elapsed time and time left, on stderr."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=2) as bars:
        yield Bar(bars, total, title)


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
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


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
