"""The knapsack against every choice there is, of up to six modules."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.bits.choose import Option, choose
from tunesmith.errors import ModelError

FORMS = ("nf4", "q8_0", "bf16")
COST = st.integers(0, 1000).map(float)


@st.composite
def _modules(draw):
    """Modules whose forms have rising bytes and any costs at all."""
    modules = {}
    for number in range(draw(st.integers(1, 6))):
        sizes = sorted(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
        modules[f"m{number}"] = [Option(form, size, draw(COST)) for form, size in zip(FORMS, sizes, strict=False)]
    return modules


@given(_modules(), st.integers(0, 60))
def test_no_choice_is_better_by_more_than_one_step(modules, more):
    budget = sum(min(option.bytes for option in forms) for forms in modules.values()) + more
    chosen = choose(modules, budget)
    assert list(chosen) == list(modules) and all(chosen[name] in forms for name, forms in modules.items())
    assert sum(option.bytes for option in chosen.values()) <= budget
    best = min(
        sum(option.cost for option in every)
        for every in itertools.product(*modules.values())
        if sum(option.bytes for option in every) <= budget
    )
    cost = sum(option.cost for option in chosen.values())
    step = max(max(option.cost for option in forms) - min(option.cost for option in forms) for forms in modules.values())
    assert best <= cost <= best + step
    assert choose(dict(reversed(modules.items())), budget) == chosen


def test_the_module_that_gains_most_a_byte_comes_first_and_the_rest_is_filled():
    def forms(cost):
        return [Option("nf4", 4, cost), Option("q8_0", 8, cost / 100), Option("bf16", 16, 0.0)]

    chosen = choose({"a": forms(1.0), "b": forms(50.0), "c": forms(7.0)}, 4 * 3 + 4 + 4 + 1)
    assert {name: option.form for name, option in chosen.items()} == {"a": "nf4", "b": "q8_0", "c": "q8_0"}


def test_a_budget_below_the_smallest_forms_says_how_much_they_take():
    with pytest.raises(ModelError, match=r"11 bytes are less than the 12 that the smallest forms take") as caught:
        choose({"a": [Option("nf4", 5, 1.0)], "b": [Option("nf4", 7, 1.0)]}, 11)
    assert "12" in caught.value.hint
