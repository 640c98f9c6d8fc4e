import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from tunesmith.evaluate.curve import DRAWS, bootstrap, fit_curve, fit_law

SHARES = np.array([0.1, 0.25, 0.5, 1.0])
ROWS = [100, 250, 500, 1000]


def _law(share, a, b, c):
    return a + b * share**-c


def _answers(rng, errors, rows, common=0.7):
    """Right or wrong for each row under each share; rows are easy or hard for all shares alike."""
    luck = np.sqrt(common) * rng.normal(size=rows) + np.sqrt(1 - common) * rng.normal(size=(len(errors), rows))
    return (luck > stats.norm.ppf(np.clip(errors, 1e-9, 1 - 1e-9))[:, None]).astype(float)


@given(a=st.floats(0.0, 0.5), b=st.floats(0.001, 0.2), c=st.floats(0.06, 0.39))
def test_a_law_without_noise_is_found(a, b, c):
    errors = _law(SHARES, a, b, c)
    constants = fit_law(SHARES, errors[None])
    shares = np.array([0.1, 0.7, 2.0, 4.0])
    assert _law(shares, *(value.item() for value in constants)) == pytest.approx(_law(shares, a, b, c), abs=0.002)


def test_no_fit_of_scipy_is_better_by_more_than_the_grid_leaves():
    rng = np.random.default_rng(0)
    errors = np.clip(_law(SHARES, 0.2, 0.15, 0.4) + rng.normal(0, 0.04, (40, 4)), 0, 1)
    errors[0], errors[1] = [0.2, 0.3, 0.4, 0.5], [0.9, 0.3, 0.1, 0.0]  # one rises, one ends on an edge
    a_B, b_B, c_B = fit_law(SHARES, errors)
    assert (a_B >= 0).all() and (b_B >= 0).all() and (c_B >= 0.05).all() and (c_B <= 2.0).all()
    ours = ((_law(SHARES, a_B[:, None], b_B[:, None], c_B[:, None]) - errors) ** 2).sum(axis=1)
    for row, loss in zip(errors, ours, strict=True):
        starts = [(0.1, 0.1, c) for c in (0.1, 0.5, 1.5)]
        bounds = ([0, 0, 0.05], [1, 10, 2])
        theirs = min(
            2 * optimize.least_squares(lambda x, row=row: _law(SHARES, *x) - row, start, bounds=bounds).cost for start in starts
        )
        assert loss <= theirs + 2e-5


@pytest.mark.slow
def test_intervals_of_gains_hold_the_truth():
    a, b, c = 0.2, 0.15, 0.4
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(40):
        curve = fit_curve(ROWS, *bootstrap(_answers(rng, _law(SHARES, a, b, c), 150)), 150, 0.03)
        truth = [b - _law(times, 0.0, b, c) for times in (2, 4)]
        covered.append([gain.low <= true <= gain.high for gain, true in zip(curve.gains, truth, strict=True)])
    assert np.mean(covered) >= 0.9


def test_rows_are_drawn_jointly_and_of_a_corpus_figure_too():
    scores = np.tile(np.arange(20) % 2.0, (3, 1))  # the same rows right under every share
    means, draws = bootstrap(scores)
    assert draws.shape == (DRAWS, 3) and means == pytest.approx([0.5] * 3)
    apart = draws - draws.mean(axis=1, keepdims=True)
    assert apart.std() < 0.25 * draws[:, 0].std()
    slow_means, slow = bootstrap(scores, lambda k, rows: scores[k, rows].mean())
    assert slow_means == pytest.approx(means) and slow.std(axis=0) == pytest.approx(draws.std(axis=0), rel=0.15)


@pytest.mark.parametrize(
    ("errors", "min_gain", "verdict", "says"),
    [
        (_law(SHARES, 0.0, 0.2, 0.6), 0.02, "more data pays", "2,000 rows would buy"),
        (_law(SHARES, 0.3, 0.0, 0.6), 0.05, "more data does not pay", "even 4,000 rows"),
        (_law(SHARES, 0.2, 0.1, 0.4), 0.025, "cannot tell", "more dev rows"),
        ([0.2, 0.4, 0.4, 0.4], 0.02, "cannot tell", "falls between 100 and 250 rows"),
        ([1.0, 1.0, 1.0, 1.0], 0.02, "cannot tell", "0 of 2,000 dev rows are right"),
    ],
)
def test_verdicts(errors, min_gain, verdict, says):
    scores, draws = bootstrap(_answers(np.random.default_rng(0), np.array(errors), 2000))
    curve = fit_curve(ROWS, scores, draws, 2000, min_gain)
    assert curve.verdict == verdict and says in curve.reason
    assert [point.rows for point in curve.points] == ROWS and [gain.rows for gain in curve.gains] == [2000, 4000]
    values = [place.value for place in curve.line]
    assert values == sorted(values) and all(place.low <= place.high for place in curve.line)


def test_all_right_is_never_certain_and_seeds_widen():
    scores, draws = bootstrap(np.ones((4, 12)))
    assert fit_curve(ROWS, scores, draws, 12, 0.03).points[-1].low < 0.99
    scores, draws = bootstrap(_answers(np.random.default_rng(3), _law(SHARES, 0.2, 0.1, 0.4), 400))
    narrow, wide = (fit_curve(ROWS, scores, draws, 400, 0.03, sd).gains[0] for sd in (None, 0.05))
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
