import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from tunesmith import formatting
from tunesmith.evaluate import interval, stats


@pytest.mark.parametrize("module", [interval, stats, formatting])
def test_examples_of_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_wilson_known_values():
    assert stats.wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert stats.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    test = scipy_stats.binomtest(61, 64)
    assert stats.wilson(61, 64, 0.05) == pytest.approx(tuple(test.proportion_ci(0.90, "wilson")))
    assert stats.exact_low(61, 64, 0.05) == pytest.approx(test.proportion_ci(0.90, "exact").low)
    assert stats.exact_low(0, 64, 0.05) == 0.0


def test_p_is_that_of_mcnemar_without_correction():
    for won, lost in [(0, 5), (3, 9), (12, 4), (1, 0)]:
        assert stats.score_p(won, lost) == pytest.approx(scipy_stats.chi2.sf((won - lost) ** 2 / (won + lost), 1), rel=1e-9)
    assert stats.score_p(0, 0) == stats.score_p(4, 4) == 1.0


def test_score_interval_known_values():
    # Airway hyper-responsiveness before and after a transplantation: 1 and 7 discordant of 21 (Fagerland et al. 2014).
    assert stats.score_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert stats.score_interval(0, 0, 16) == pytest.approx((-0.19361, 0.19361), abs=1e-5)  # z^2 / (n + z^2)
    assert stats.score_interval(8, 0, 8)[1] == 1.0


@pytest.mark.parametrize(("b", "c", "n"), [(7, 1, 21), (12, 12, 60), (3, 0, 100), (0, 40, 90)])
def test_score_interval_ends_where_the_restricted_likelihood_puts_them(b, c, n):
    """The rates that are most likely given a difference, found by maximisation, make the score +-1.96 at the ends."""
    for delta, sign in zip(stats.score_interval(b, c, n), (1, -1), strict=True):

        def unlikelihood(q, delta=delta):
            return -(
                scipy_stats.multinomial.logpmf([b, c, n - b - c], n, [q + delta, q, 1 - 2 * q - delta])
            )  # q: rate of "only b"

        low, high = max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
        q = optimize.minimize_scalar(unlikelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        score = (b - c - n * delta) / np.sqrt(n * (2 * q + delta - delta**2))
        assert sign * score == pytest.approx(1.959964, abs=2e-4)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 300))
def test_score_interval_says_what_the_test_says_and_does_not_depend_on_who_comes_first(b, c, more):
    n = b + c + more
    low, high = stats.score_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert stats.score_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-8)
    chi2 = (b - c) ** 2 / max(b + c, 1)  # McNemar 1947
    if abs(chi2 - 3.841459) > 1e-6:
        assert (low > 0 or high < 0) == (chi2 > 3.841459) == (stats.score_p(b, c) < 0.05)
    wider_low, wider_high = stats.score_interval(b, c, n, tail=0.005)
    assert (wider_low < low and high < wider_high) or high == wider_high == 1.0 or low == wider_low == -1.0


def test_score_interval_of_arrays_is_that_of_each():
    b, c = np.array([[0, 3], [7, 20]]), np.array([[0, 9], [1, 20]])
    low, high = stats.score_limits(b, c, 50)
    for cell in np.ndindex(2, 2):
        assert (low[cell], high[cell]) == stats.score_interval(int(b[cell]), int(c[cell]), 50)


def _changed(n, won, lost):
    return np.array([1.0] * won + [-1.0] * lost + [0.0] * (n - won - lost))


def test_non_inferiority_of_right_and_wrong():
    assert stats.non_inferior(_changed(2000, 20, 20), 0.02)[0] == "no regression"
    assert stats.non_inferior(_changed(400, 0, 40), 0.02)[0] == "regression"
    assert stats.non_inferior(_changed(100, 5, 5), 0.02)[0] == "too little data to tell"
    assert stats.non_inferior(_changed(100, 0, 0), 0.02)[0] == "too little data to tell"  # 0 of 100 leaves room for 2.6
    assert stats.non_inferior(_changed(140, 0, 0), 0.02)[0] == "no regression"
    verdict, mean, bound = stats.non_inferior(_changed(1000, 0, 15), 0.02)  # a loss for certain, but a small one
    assert mean == -0.015 and bound < -0.02 and verdict == "too little data to tell"
    assert stats.non_inferior(_changed(10_000, 0, 150), 0.02)[0] == "no regression"


def test_non_inferiority_of_measurements():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, 60)
    noise -= noise.mean()
    verdict, mean, bound = stats.non_inferior(noise, 0.02)
    expected = scipy_stats.t.ppf(0.05, 59) * noise.std(ddof=1) / np.sqrt(60)
    assert verdict == "no regression" and mean == pytest.approx(0, abs=1e-12) and bound == pytest.approx(expected, rel=0.05)
    assert stats.non_inferior(noise - 0.05, 0.02)[0] == "regression"
    assert stats.non_inferior(noise - 0.015, 0.02)[0] == "too little data to tell"
    same = np.zeros(40)  # a model that did not change
    assert stats.non_inferior(same, 0.02, binary=False) == ("no regression", 0.0, 0.0)
    assert stats.non_inferior(same, 0.02, binary=True)[0] == "too little data to tell"


def test_non_inferiority_of_clusters_counts_clusters():
    rng = np.random.default_rng(1)
    of_cluster = rng.normal(0, 0.05, 20)
    rows, clusters = np.repeat(of_cluster, 10), [f"{i // 10:02}" for i in range(200)]
    alone, together = stats.non_inferior(rows, 0.02)[2], stats.non_inferior(rows, 0.02, clusters)[2]
    assert together == pytest.approx(stats.non_inferior(of_cluster, 0.02)[2]) and together < alone
