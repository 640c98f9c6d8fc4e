from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from outputs import outputs
from tunesmith.evaluate import resample, stats
from tunesmith.evaluate.interval import Interval

LABELS = 3


def _rows(scores, answer=None, label=None):
    rows = outputs(scores)
    if answer is None:
        return rows
    return [replace(row, output=str(a), reference=str(b)) for row, a, b in zip(rows, answer, label, strict=True)]


def _macro_f1(rows):
    pairs = [(int(row.output), int(row.reference)) for row in rows]
    f1 = []
    for label in range(LABELS):
        right = sum(pair == (label, label) for pair in pairs)
        f1.append(2 * right / max(1, sum(int(a == label) + int(b == label) for a, b in pairs)))
    return float(np.mean(f1))


def _macro_f1_counts(rows):
    texts = [[int(row.output) for row in rows], [int(row.reference) for row in rows]]
    answer, label = (np.array(numbers)[:, None] == np.arange(LABELS) for numbers in texts)
    return np.concatenate([answer & label, answer, label], axis=1).astype(float)


def _macro_f1_of_sums(sums):
    right, answered, asked = np.split(sums, 3, axis=-1)
    return (2 * right / np.maximum(1, answered + asked)).mean(axis=-1)


SUMS = resample.SumStatistic(_macro_f1_counts, _macro_f1_of_sums)


def test_bootstrap_of_a_mean_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.beta(2, 1, 150), rng.beta(1, 1, 150)
    values = resample.bootstrap(resample.MEAN, [_rows(a), _rows(b)], resample.units(None, 150))
    ours = np.quantile(values[:, 0] - values[:, 1], [0.025, 0.975])
    theirs = scipy_stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert values.shape == (resample.DRAWS, 2)
    assert ours == pytest.approx(tuple(theirs), abs=0.004)


def test_few_units_get_the_interval_of_student():
    values = np.random.default_rng(3).normal(0.1, 0.2, 12)
    low, high = stats.mean_interval(values, resample.units(None, 12))
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert high - low == pytest.approx(expected.high - expected.low, rel=0.05)


def test_sums_give_the_distribution_that_rows_give(monkeypatch):
    monkeypatch.setattr(resample, "CORPUS_DRAWS", 500)
    rng = np.random.default_rng(0)
    label, a, b = (rng.integers(0, LABELS, 80) for _ in range(3))
    better = np.where(rng.random(80) < 0.6, label, a)
    arms = [_rows(better == label, answer=better, label=label), _rows(b == label, answer=b, label=label)]
    assert SUMS(arms[0]) == pytest.approx(_macro_f1(arms[0]), abs=1e-12)
    groups = [str(i // 2) for i in range(80)]
    for unit_N in (resample.units(None, 80), resample.units(groups, 80)):
        fast, slow = (resample.bootstrap(statistic, arms, unit_N) for statistic in (SUMS, _macro_f1))
        levels = [0.025, 0.5, 0.975]
        assert np.quantile(fast, levels, axis=0) == pytest.approx(np.quantile(slow, levels, axis=0), abs=0.025)


@pytest.mark.parametrize("u", [5, 40])
def test_p_is_below_a_level_exactly_where_the_interval_excludes_zero(u):
    rng = np.random.default_rng(u)
    sides = []
    for centre in np.linspace(0.0, 4.0, 60):
        values, level = rng.normal(centre, 1.0, 4000), rng.choice([0.05, 0.2])
        low, _ = resample.percentile_interval(values, u, level / 2)
        p = resample.percentile_p(values, u)
        if abs(p - level) > 0.1 * level:  # the quantiles are interpolated between draws
            assert (low > 0.0) == (p < level)
            sides.append(low > 0.0)
    assert 10 < sum(sides) < len(sides) - 10
    assert resample.percentile_p(np.zeros(100), u) == 1.0 and 0.0 < resample.percentile_p(np.ones(100), u) < 0.3


def test_units_are_groups_whatever_their_order():
    unit_N = resample.units(["b", "a", "b", "c"], 4)
    assert unit_N[0] == unit_N[2] and len(set(unit_N.tolist())) == 3
    sums = resample.per_unit(np.array([1.0, 2.0, 4.0, 8.0]), unit_N)
    assert sums[unit_N].tolist() == [5.0, 2.0, 5.0, 8.0]


def test_weights_draw_every_unit_as_often():
    chunks = list(resample.weights(40, 3000))
    total = np.concatenate(chunks)
    assert total.shape == (3000, 40) and (total.sum(axis=1) == 40).all()
    assert total.mean(axis=0) == pytest.approx(np.ones(40), abs=0.1)
    assert sum(len(chunk) for chunk in resample.weights(3_000_000, 3)) == 3  # more units than a chunk holds


def test_where_few_units_differ_the_signs_rule():
    difference = np.zeros(100)
    difference[:3] = 0.01
    low, high = stats.never_inside_the_signs(Interval(0.0, 0.0006), difference, 0.025)
    assert (low, high) == (pytest.approx(min(0.0, stats.score_interval(3, 0, 100)[0])), stats.score_interval(3, 0, 100)[1])
    assert stats.never_below_the_signs(1e-6, difference) == stats.score_p(3, 0)
    difference[:20] = 0.01
    assert stats.never_below_the_signs(1e-6, difference) == 1e-6
    assert stats.never_inside_the_signs(Interval(0.0, 0.0006), difference, 0.025) == (0.0, 0.0006)
