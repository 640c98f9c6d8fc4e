"""What the gate promises, over whole simulated decisions: the stored simulation holds it, and a smaller one agrees."""

import numpy as np
import pytest

from simulations import simulation_module, stored_simulation


@pytest.fixture(scope="module")
def simulation():
    return simulation_module("gate_simulation")


def _stored():
    return {(c["truth"], c["n"], c["sd"], c["dev"], c["prompts"]): c for c in stored_simulation("gate_simulation")["cells"]}


def test_the_stored_simulation_is_whole_and_holds_what_is_promised(simulation):
    cells = _stored()
    assert set(cells) == set(simulation.CELLS)
    for (truth, rows, _, _, _), cell in cells.items():
        if truth in ("equal", "worse2"):
            assert cell["deploy"] <= 0.05, cell
        elif rows >= 300:
            assert cell["deploy"] >= 0.90, cell


def test_a_halving_of_the_simulation_keeps_the_best_prompt_where_it_stands_out(simulation):
    right = np.zeros((16, 64), dtype=bool)
    right[11] = True
    assert simulation.finalists_of(right, 3)[0] == 11
    task = simulation.Task("gain10", 1000, 2, 64, np.random.default_rng(0))
    assert task.tuned_test.mean() - task.prompts_test.mean(axis=1).max() == pytest.approx(0.10, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", [("equal", 1000, 5, 64, 16), ("equal", 300, 5, 64, 32), ("worse2", 300, 2, 64, 16), ("gain10", 300, 2, 64, 16)]
)
def test_a_smaller_simulation_agrees(simulation, key):
    cell, stored = simulation.simulate(*key, 600), _stored()[key]
    assert cell["deploy"] == pytest.approx(stored["deploy"], abs=3 * cell["se"])


@pytest.mark.slow
def test_one_finalist_lets_models_through_that_are_no_better(simulation):
    """The accident that several finalists are the cure of: one prompt chosen on 64 rows."""
    rng, answers = np.random.default_rng(1), simulation.Answers(1000)
    decisions = [simulation.decision(simulation.Task("equal", 1000, 5, 64, rng), answers, finalists=1) for _ in range(300)]
    assert decisions.count("deploy") > 0.2 * 300
