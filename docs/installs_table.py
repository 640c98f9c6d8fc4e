"""The tables of ``docs/how-to/install.md``: what was installed and run, and what was only resolved, from the newest rows kept.

The rows are those of ``tools/matrix.py``. A page that says "tested on" by hand says so for ever.
"""

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- installs -->\n", "<!-- end of installs -->\n"
EXTRAS = ("core", "train", "all")


def with_installs(text: str, results: Path) -> str:
    """The page with its tables.

    Args:
        text: of the page.
        results: the folder of the kept rows, ``installs-DATE.json``.
    """
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    newest = sorted(results.glob("installs-*.json"))[-1]
    rows: list[dict[str, Any]] = json.loads(newest.read_text(encoding="utf-8"))
    parts = [*_ran(rows), "", *_resolved(rows), "", f"Source: `benchmarks/results/{newest.name}`.", ""]
    return f"{before}{BEGIN}" + "\n".join(parts) + f"{END}{after}"


def _ran(rows: list[dict[str, Any]]) -> list[str]:
    """A line an installation: how large it is, how long it took, whether it answers."""
    lines = ["| installed from the file and run | with | packages | GB | seconds | answers |", "|---|---|---|---|---|---|"]
    ran = [row for row in rows if row["kind"] == "installed"]
    for row in sorted(ran, key=lambda row: (_version(row["python"]), EXTRAS.index(row["extra"]))):
        name = f"Python {row['python']}, {row['system']}" if row["python"][0].isdigit() else f"`{row['python']}`"
        size = "" if row["megabytes"] is None else f"{row['megabytes'] / 1000:.1f}"
        packages = row["packages"] or ""
        answers = "yes" if row["result"] == "ok" else f"no: {' '.join(row['result'].split())[:80]}"
        lines.append(f"| {name} | {row['extra']} | {packages} | {size} | {row['seconds']:.0f} | {answers} |")
    return lines


def _version(python: str) -> list[int]:
    return [int(part) for part in python.split(".")] if python[0].isdigit() else [99]


def _resolved(rows: list[dict[str, Any]]) -> list[str]:
    """A line a system: for which Pythons a wheel of every dependency is there."""
    lines = ["| wheels are there for every dependency of | core | train | all |", "|---|---|---|---|"]
    resolved = [row for row in rows if row["kind"] == "resolved"]
    for system in dict.fromkeys(row["system"] for row in resolved):
        cells = []
        for extra in EXTRAS:
            mine = [row for row in resolved if row["system"] == system and row["extra"] == extra]
            good = [row["python"] for row in mine if row["result"] == "ok"]
            cells.append(f"{good[0]} to {good[-1]}" if len(good) == len(mine) and good else ", ".join(good) or "no")
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return lines
