import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import toy_rows
from outputs import outputs
from tunesmith.errors import RunError
from tunesmith.evaluate.metrics import format_line
from tunesmith.evaluate.search import cost, instructions, rungs, search, space
from tunesmith.rundir.records.evaluation import Candidate
from tunesmith.rundir.rows import Row

ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows())]


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 2000))
def test_a_plan_never_costs_more_than_the_budget_and_spends_what_it_can(rows, most, calls):
    if calls < rows:
        with pytest.raises(RunError, match="do not cover one prompt"):
            rungs(rows, most, calls)
        return
    plan = rungs(rows, most, calls)
    assert cost(plan) <= calls and plan[-1][1] == rows and 1 <= plan[-1][0] <= plan[0][0] <= most
    assert plan == sorted(plan, key=lambda rung: rung[1])
    if plan[0][0] < most:  # one candidate more would not be paid
        more = [(-(-(plan[0][0] + 1) // 2**number), mark) for number, (_, mark) in enumerate(plan)]
        assert cost(more) > calls


def test_halving_keeps_the_better_half_and_asks_no_row_twice():
    options = [Candidate(arm="optimized_prompt", instruction=str(quality)) for quality in (3, 9, 1, 7, 5, 8, 2, 6)]
    asked = []

    def ask(candidate, part):
        rows = range(12)[part]
        asked.extend((candidate.instruction, row) for row in rows)
        return outputs([int(candidate.instruction)] * len(rows))

    def rank(answers):
        return (sum(answer.score for answer in answers) / len(answers),)

    winner = search(options, 12, 8 * 3 + 4 * 3 + 2 * 6, ask, rank)
    assert winner.candidate.instruction == "9" and len(winner.outputs) == 12
    assert winner.calls == len(asked) == len(set(asked)) == 48
    assert {name for name, row in asked if row >= 3} == {"9", "8", "7", "6"}
    assert {name for name, row in asked if row >= 6} == {"9", "8"}
    assert search(options, 12, 13, ask, rank).candidate == options[0]  # the budget pays for the first alone


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
