"""What the rule on one comparison says of its own power, by enumeration of every outcome through the comparison itself."""

import doctest
import functools
import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tunesmith.evaluate import rule, stats
from tunesmith.rundir.records.evaluation import Comparison, Terms

BETTER, WORTH = Terms(min_gain=0.05), Terms(min_gain=0.05, certainty="worth")


def comparison(won, lost, n, yes_no=True):
    low, high = stats.score_interval(won, lost, n)
    return Comparison(gain=(won - lost) / n, low=low, high=high, p=0.5, won=won, lost=lost, n=n, units=n, yes_no=yes_no)


@functools.cache
def outcomes(n):
    return [comparison(won, lost, n) for won, lost in itertools.product(range(n + 1), repeat=2) if won + lost <= n]


def exact(n, share, gain, holds):
    """Probability of all outcomes for which something holds."""
    counts = np.array([(c.won, c.lost, n - c.won - c.lost) for c in outcomes(n)])
    probability = scipy_stats.multinomial.pmf(counts, n, [(share + gain) / 2, (share - gain) / 2, 1 - share])
    return probability[[holds(c) for c in outcomes(n)]].sum()


def test_examples_of_docstrings():
    results = doctest.testmod(rule)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("terms", [BETTER, WORTH, Terms(min_gain=0.0)])
@pytest.mark.parametrize(("n", "share", "gain"), [(20, 0.3, 0.2), (31, 0.2, 0.05), (30, 0.5, 0.0), (26, 0.25, 0.25)])
def test_power_is_the_probability_of_all_outcomes_that_are_shown(n, share, gain, terms):
    shown = exact(n, share, gain, lambda c: rule.is_shown(c, terms))
    assert rule.power(n, share, gain, terms) == pytest.approx(shown, abs=1e-9)
    ruled_out = exact(n, share, gain, lambda c: rule.is_ruled_out(c, terms))
    assert rule.power_to_rule_out(n, share, gain, terms) == pytest.approx(ruled_out, abs=1e-9)


def test_no_number_of_rows_shows_min_gain_itself():
    assert all(rule.power(n, 0.2, 0.05, BETTER) == pytest.approx(0.5, abs=0.03) for n in (626, 3000, 30_000))
    assert rule.rows_needed(comparison(12, 8, 100), 0.05, BETTER) is None


@pytest.mark.parametrize("terms", [BETTER, WORTH])
@pytest.mark.parametrize("gain", [0.08, 0.10, 0.15])
def test_rows_needed_are_the_fewest_that_show_the_gain_four_times_in_five(terms, gain):
    n = rule.rows_needed(comparison(12, 8, 100), gain, terms)
    assert rule.power(n, 0.2, gain, terms) >= 0.80 > rule.power(n - 1, 0.2, gain, terms)
    assert all(rule.power(more, 0.2, gain, terms) > 0.77 for more in range(n, 2 * n, 7))  # whole rows go in steps
    detectable = rule.detectable_gain(n, 0.2, terms)
    assert detectable == pytest.approx(gain, abs=0.003)


@pytest.mark.parametrize("counts", [(14, 6), (16, 4), (11, 9), (9, 11), (3, 2)])
@pytest.mark.parametrize("terms", [BETTER, WORTH])
def test_rows_to_settle_settle_four_times_in_five(counts, terms):
    c = comparison(*counts, 100)
    n, share = rule.rows_to_settle(c, terms), sum(counts) / 100
    if c.gain > terms.min_gain:
        assert rule.power(n, share, c.gain, terms) >= 0.80
    else:
        assert rule.power_to_rule_out(n, share, c.gain, terms) >= 0.80
    assert n > 100


def test_a_gain_on_the_border_is_settled_by_no_number():
    assert rule.rows_to_settle(comparison(12, 7, 100), BETTER) is None
    assert rule.rows_to_settle(comparison(50, 49, 1000), Terms(min_gain=0.00101)) is None
    assert rule.rows_to_settle(comparison(5, 5, 100), Terms(min_gain=0.0)) is None


def test_scores_that_are_not_yes_or_no_have_the_power_of_a_normal_estimate():
    """At the rows and gains named, 100,000 normal estimates with that error pass the rule four times in five."""
    c = comparison(30, 20, 200, yes_no=False)
    spread = (c.high - c.low) / 2 / 1.959964 * np.sqrt(200)
    rng = np.random.default_rng(0)

    def shown(n, gain, terms):
        error = spread / np.sqrt(n)
        estimate = rng.normal(gain, error, 100_000)
        least = terms.min_gain if terms.certainty == "worth" else 0.0
        return ((estimate >= terms.min_gain) & (estimate - 1.959964 * error > least)).mean()

    for terms in (BETTER, WORTH):
        assert shown(rule.rows_needed(c, 0.08, terms), 0.08, terms) == pytest.approx(0.80, abs=0.01)
        assert shown(200, rule.detectable(c, terms), terms) == pytest.approx(0.80, abs=0.01)
        assert rule.rows_needed(c, 0.05, terms) is None


@pytest.mark.parametrize(
    ("counts", "better", "worth", "how_sure"),
    [((30, 5), True, True, "certain"), ((22, 8), True, False, "likely"), ((12, 2), True, False, "likely")],
)
def test_what_is_certain_and_what_is_likely(counts, better, worth, how_sure):
    c = comparison(*counts, 150)
    assert (rule.is_shown(c, BETTER), rule.is_shown(c, WORTH), rule.worth(c, BETTER)) == (better, worth, how_sure)


def test_a_gain_of_exactly_min_gain_is_one():
    c = comparison(150, 100, 1000)
    assert 0.15 - 0.10 < 0.05  # in floating point
    assert rule.is_shown(Comparison(**{**vars(c), "gain": 0.15 - 0.10}), BETTER)
