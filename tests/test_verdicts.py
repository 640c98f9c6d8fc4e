"""The verdicts that the documents show follow from what was kept of their runs."""

import io
import re
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from shared import ROOT
from simulations import BENCHMARKS, simulation_module
from tunesmith.cli.text import print_verdict
from tunesmith.rundir.records.evaluation import Verdict

KEPT = sorted((BENCHMARKS / "results" / "verdicts").iterdir())
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLE_HEADER = "won/lost"


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.name)
def test_a_kept_verdict_follows_from_the_answers(kept, tmp_path):
    assert simulation_module("verdicts").reach(kept, tmp_path) == Verdict.read(kept / "verdict.json")


@cache
def _printed(kept: Path) -> list[str]:
    text = io.StringIO()
    print_verdict(Verdict.read(kept / "verdict.json"), Console(file=text, width=120))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_every_table_in_the_documents_is_of_a_kept_verdict():
    """Lines may be left out of a table; those that are there are one verdict's, in its order."""
    tables = 0
    for page in PAGES:
        for block in re.findall(r"```text\n(.*?)```", page.read_text(), re.DOTALL):
            if TABLE_HEADER not in block:
                continue
            tables += 1
            lines = [words for line in block.splitlines() if (words := " ".join(line.split())) and not words.startswith("─")]
            assert any(_in_order(lines, _printed(kept)) for kept in KEPT), f"{page.name}: a table of no kept verdict:\n{block}"
    assert tables >= 2


def _in_order(lines: list[str], printed: list[str]) -> bool:
    remaining = iter(printed)
    return all(line in remaining for line in lines)
