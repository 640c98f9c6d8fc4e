import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import toy_rows
from tunesmith.errors import RunError
from tunesmith.evaluate.metrics import format_line
from tunesmith.evaluate.search import affordable, cost, halving, instructions, rungs, space
from tunesmith.rundir.records.evaluation import Candidate
from tunesmith.rundir.rows import Row

ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows())]


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 8))
def test_a_halving_ends_on_all_rows_and_drops_nobody_on_few(rows, count, survivors):
    plan = rungs(count, rows, survivors)
    alive, marks = [a for a, _ in plan], [mark for _, mark in plan]
    assert alive == sorted(alive, reverse=True) and alive[0] == count and alive[-1] >= min(survivors, count)
    assert marks == sorted(set(marks)) and marks[-1] == rows and (marks[0] >= 32 or marks == [rows])
    assert cost(plan) <= count * rows


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 2000))
def test_a_search_never_costs_more_than_the_budget_and_spends_what_it_can(rows, most, calls):
    if calls < rows:
        with pytest.raises(RunError, match="do not cover one prompt"):
            affordable(most, rows, 3, calls)
        return
    count = affordable(most, rows, 3, calls)
    assert cost(rungs(count, rows, 3)) <= calls and 1 <= count <= most
    assert count == most or cost(rungs(count + 1, rows, 3)) > calls  # one prompt more would not be paid


def test_halving_ranks_by_who_came_further_and_asks_no_row_of_whom_it_dropped():
    qualities, asked = (3, 9, 1, 7, 5, 8, 2, 6), []

    def standing(quality, rows):
        asked.append((quality, rows))
        return (quality,) if rows < 128 else (-quality,)  # who leads on few rows is the last of the finalists on all of them

    ranked = halving(qualities, 128, 2, standing)
    assert ranked == [(8, 128), (9, 128), (7, 64), (6, 64), (5, 32), (3, 32), (2, 32), (1, 32)]
    assert {quality for quality, rows in asked if rows == 64} == {9, 8, 7, 6}
    assert {quality for quality, rows in asked if rows == 128} == {9, 8}
    assert [quality for quality, _ in halving(qualities, 128, 5, standing)][:5] == [5, 6, 7, 8, 9]
    assert [name for name, _ in halving("abc", 10, 1, lambda option, rows: (1.0,))] == [
        "a",
        "b",
        "c",
    ]  # equals keep their order


def test_instructions_are_rewritten_by_rule_and_listed_once(make_recipe):
    recipe = make_recipe(
        {"task.prompt": "First do this. Then do that.", "evaluate.optimized_prompt": {"instructions": ["Mine.", "Mine."]}}
    )
    texts = instructions(recipe)
    assert texts["as written"] == "First do this. Then do that."
    assert texts["last sentence first"] == "Then do that. First do this."
    assert texts["format line first"].startswith("Answer with one JSON object and nothing else. Its keys: colour, thing.")
    assert texts["own 1"] == "Mine." and "own 2" not in texts and len(set(texts.values())) == len(texts)
    assert "short" not in texts  # no short prompt: nothing new to say
    labels = recipe.task.model_copy(update={"metric": "classification", "labels": ("yes", "no")})
    assert format_line(labels) == "Answer with exactly one of these and nothing else: yes, no."


def test_the_space_is_the_same_for_a_seed_and_begins_with_what_is_known(make_recipe):
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 2], "selection": ["random", "bm25"]}})
    start = [Candidate(arm="instruction", instruction=recipe.task.prompt)]
    found = space(recipe, ROWS[:40], start)
    assert found[0].instruction == recipe.task.prompt and found[0].variant == "as written" and found[0].k == 0
    assert len(set(found)) == len(found) and {c.selection for c in found} == {"none", "random", "bm25"}
    assert found == space(recipe, ROWS[:40], start)
    assert found != space(make_recipe({"seed": 1}), ROWS[:40], start)
