"""The figure of a chosen prompt owes nothing to the choice; what the advice promises of it, over simulated tasks."""

import numpy as np
import pytest

from outputs import outputs
from simulations import simulation_module, stored_simulation
from tunesmith.evaluate import stats
from tunesmith.evaluate.cross_fit import BOUND, cross_fit
from tunesmith.evaluate.metrics import Metric

YES_NO = Metric(name="exact_match", score=lambda answer, reference: {"score": 1.0}, tie_break="score", binary=True)


def mean(answers):
    return (float(np.mean([answer.score for answer in answers])),)


@pytest.fixture(scope="module")
def simulation():
    return simulation_module("advice_simulation")


def test_one_prompt_is_worth_what_it_got():
    answers = outputs([1.0] * 50 + [0.0] * 14)
    fit = cross_fit([answers], mean, YES_NO)
    assert (fit.score, fit.n, (fit.low, fit.high)) == (50 / 64, 64, stats.wilson(50, 64))
    assert fit.low < fit.bound < fit.score and fit.bound == stats.wilson(50, 64, BOUND).low


def test_luck_of_the_rows_is_not_counted():
    """Two prompts, each right where the other is wrong: on dev one of them wins, on the other half it loses."""
    even = [float(row % 2 == 0) for row in range(32)]
    ways = [outputs(even), outputs([1.0 - score for score in even])]
    assert max(mean(answers) for answers in ways) == (0.5,)
    assert cross_fit(ways, mean, YES_NO).score == 0.0


def test_a_row_is_held_out_among_the_prompts_that_were_asked_it():
    """The good prompt dropped out after 8 rows, on which the survivor was wrong: it counts for those 8 and no others."""
    dropped, survivor = outputs([1.0] * 8), outputs([0.0] * 8 + [1.0] * 8 + [0.0] * 16)
    assert cross_fit([dropped, survivor], mean, YES_NO).score == (8 + 8) / 32


def test_rows_of_a_group_are_held_out_together():
    """Sixteen groups of two equal rows: rows on their own would find the twin of a lucky row in the other half."""
    names = [f"group {row // 2:02}" for row in range(32)]
    luck = [float(row // 2 % 2 == 0) for row in range(32)]
    ways = [outputs(luck), outputs([1.0 - score for score in luck])]
    grouped = cross_fit(ways, mean, YES_NO, names)
    assert grouped.score == 0.0 and grouped.n == 32
    assert cross_fit(ways, mean, YES_NO).score == 0.5


def test_no_second_row_no_figure():
    assert cross_fit([], mean, YES_NO) is None
    assert cross_fit([outputs([1.0])], mean, YES_NO) is None
    assert cross_fit([outputs([1.0, 1.0])], mean, YES_NO, ["one", "one"]) is None
    assert cross_fit([outputs([1.0, 0.0])], mean, YES_NO).score == 0.5


def test_few_wrong_rows_are_bounded_exactly():
    """Wilson's bound of 30 right of 30 is above 90, though a prompt at 90 gets there 4.2 times in 100."""
    assert stats.wilson(30, 30, BOUND).low > 0.90
    bound = cross_fit([outputs([1.0] * 30)], mean, YES_NO).bound
    assert bound == pytest.approx(BOUND ** (1 / 30)) and bound < 0.90


def test_the_stored_simulation_is_whole_and_holds_what_is_promised(simulation):
    cells = {(c["left"], c["dev"], c["prompts"], c["sd"]): c for c in stored_simulation("advice_simulation")["cells"]}
    assert set(cells) == set(simulation.CELLS)
    for (left, rows, _, _), cell in cells.items():
        if left == 10:
            assert cell["enough"] <= 0.10, cell
            assert cell["fitted"] <= 0.90 + 0.005, cell
        elif left == 0 and rows >= 64:  # no promise: a floor under what was measured
            assert cell["enough"] >= (0.70 if rows == 64 else 0.90), cell
    coverage = {(c["metric"], c["dev"]): c for c in stored_simulation("advice_simulation")["coverage"]}
    assert set(coverage) == set(simulation.COVERED)
    assert all(cell["covered"] >= 0.92 for cell in coverage.values())


def test_a_smaller_simulation_agrees(simulation):
    cell = simulation.simulate(10, 64, 17, 0, 150)
    assert cell["enough"] <= 0.10 + 2 * cell["enough_se"]
    assert cell["enough_before"] > 0.40 and cell["winner"] > 0.94
    assert cell["fitted"] == pytest.approx(0.90, abs=0.01)
