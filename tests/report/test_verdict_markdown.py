"""A verdict for a pull request: what a reviewer needs stands there, and no text of a recipe breaks the page."""

import re
from dataclasses import replace

import pytest

from simulations import BENCHMARKS
from tunesmith.report.verdict_markdown import plain, verdict_markdown
from tunesmith.rundir.records.evaluation import Verdict

KEPT = sorted((BENCHMARKS / "results" / "verdicts").glob("*/verdict.json"))
SHA = "a" * 64


def _cells(line):
    return len(re.findall(r"(?<!\\)\|", line))


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.parent.name)
def test_the_page_says_decision_gain_checks_and_what_is_not_known(kept):
    verdict = replace(Verdict.read(kept), files={"adapter/adapter_model.safetensors": SHA})
    page = verdict_markdown(verdict, "demo", "b" * 64)
    assert page.startswith(f"### demo: **{verdict.decision}**\n") and "b" * 64 in page and SHA in page
    assert f"**{100 * verdict.comparison.gain:+.1f} points**" in page
    assert verdict.forgetting.verdict in page and verdict.parity.state in page
    assert ("no bar was set" in page) == (verdict.terms.min_score is None)
    assert not {row for row in verdict.differing.won if row in page}


def test_texts_of_a_recipe_break_no_table_and_are_no_html():
    verdict = Verdict.read(KEPT[0])
    hostile = "a|b <img src=x onerror=1> `c` [d](e) @team\n# f"
    rivals = (replace(verdict.rivals[0], way=hostile), *verdict.rivals[1:])
    page = verdict_markdown(replace(verdict, rivals=rivals, reason=hostile), hostile, SHA)
    assert not re.search(r"(?<!\\)<img", page) and not re.search(r"(?<!\\)@team", page) and "\n# f" not in page
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({_cells(line) for line in block.splitlines()}) == 1
    assert plain("plain words") == "plain words"
