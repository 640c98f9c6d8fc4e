"""What ``auto`` comes to: the table of the rule, its bounds, and that numbers of the recipe win."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.pack import Plan
from tunesmith.recipe import Lora, Train
from tunesmith.recipe.derive import derive, width_of_update

ONE_EPOCH = Train(num_train_epochs=1)


def _rate(hidden, rows_per_step, steps, update=32.0):
    train = Train(tokens_per_step=10 * rows_per_step, num_train_epochs=1)
    return derive(train, rows=rows_per_step * steps, tokens=10 * rows_per_step * steps, hidden=hidden, update=update)


@pytest.mark.parametrize(
    ("hidden", "large", "small", "short"),
    [  # width, rate at 128 rows a step, at 32 rows or fewer, and there below 100 steps
        (576, 1.3e-3, 6.6e-4, 9.9e-4),
        (640, 1.2e-3, 6.1e-4, 9.1e-4),
        (896, 9.4e-4, 4.7e-4, 7.0e-4),
        (2048, 4.9e-4, 2.5e-4, 3.7e-4),
        (4096, 2.9e-4, 1.4e-4, 2.1e-4),
        (8192, 1.7e-4, 8.3e-5, 1.2e-4),
    ],
)
def test_rate_is_the_rule_s(hidden, large, small, short):
    found = [_rate(hidden, 128, 200), _rate(hidden, 32, 200), _rate(hidden, 1, 200), _rate(hidden, 32, 99)]
    rates = [derived.settings.learning_rate for derived in found]
    assert rates == pytest.approx([large, small, small, short])


def test_rate_stays_within_its_bounds_and_says_so():
    widest, narrowest = _rate(65536, 8, 200), _rate(16, 8, 200)
    assert (widest.settings.learning_rate, narrowest.settings.learning_rate) == (5e-5, 2e-3)
    assert all("kept within" in derived.why["learning_rate"] for derived in (widest, narrowest))


@pytest.mark.parametrize(
    ("lora", "factor"),
    [
        (Lora(r=8), 1.0),
        (Lora(r=256), 1.0),
        (Lora(r=64, alpha=128), 0.25),
        (Lora(r=64, use_rslora=True), 0.125),
        (Lora(r=64, use_dora=True), 1.0),
    ],
)
def test_rate_falls_as_the_update_is_scaled_up(lora, factor):
    rate = _rate(1024, 128, 200, width_of_update(lora)).settings.learning_rate
    assert rate == pytest.approx(factor * _rate(1024, 128, 200).settings.learning_rate, rel=0.05)  # two digits


@pytest.mark.parametrize(
    ("answer", "rate"),
    [  # tokens of an answer, four of which are a step; long ones take the rate to that of many rows
        (None, 6.6e-4),
        (1, 6.6e-4),
        (8, 6.6e-4),
        (18, 9.9e-4),
        (32, 1.3e-3),
        (900, 1.3e-3),
    ],
)
def test_long_answers_make_up_for_few_rows(answer, rate):
    train = Train(tokens_per_step=4000, num_train_epochs=1)
    derived = derive(train, rows=800, tokens=800_000, hidden=576, supervised=None if answer is None else 800 * answer)
    assert derived.settings.learning_rate == pytest.approx(rate)
    assert ("answer tokens a step" in derived.why["learning_rate"]) == (answer == 18)


@given(st.integers(1, 100_000), st.integers(1, 2000), st.one_of(st.just("auto"), st.integers(1, 9)))
def test_steps_are_many_and_small(rows, mean, epochs):
    derived = derive(Train(num_train_epochs=epochs), rows=rows, tokens=rows * mean, hidden=1024)
    settings = derived.settings
    assert mean <= settings.tokens_per_step <= 32 * mean
    visits = rows * settings.num_train_epochs
    assert visits / derived.rows_per_step >= min(150, visits) - 1e-6
    fewer = settings.tokens_per_step < 32 * mean
    assert fewer == ("steps" in derived.why["tokens_per_step"])


def test_a_plan_by_them_has_the_steps():
    lengths = [20, 30, 40, 50] * 300 + [900]
    settings = derive(ONE_EPOCH, rows=len(lengths), tokens=sum(lengths), hidden=1024).settings
    assert len(Plan(lengths, 1, settings.tokens_per_step, 1024, 0)) >= 150


def test_numbers_of_the_recipe_win_and_are_not_explained_away():
    train = Train(learning_rate=0.1, tokens_per_step=7, num_train_epochs=9, schedule="linear")
    derived = derive(train, rows=10, tokens=100, hidden=64)
    assert derived.settings.model_dump() == train.model_dump()
    assert set(derived.why.values()) == {"as the recipe says"} and derived.rows_per_step == 1.0


def test_lines_say_value_and_derivation():
    derived = derive(ONE_EPOCH, rows=800, tokens=80_000, hidden=576)
    assert derived.lines == (
        "num_train_epochs 1 as the recipe says",
        "tokens_per_step 500 = 5 rows of 100 tokens: 32 rows a step would leave 25 steps, of at least 150",
        "learning_rate 6.6e-04 = 5e-4 (2000/576)^0.781 x 0.5 (5 rows a step)",
    )
