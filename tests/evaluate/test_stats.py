import numpy as np
import pytest
from scipy import stats as scipy_stats

from tunesmith.evaluate import stats


def test_wilson_known_values():
    assert stats.wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert stats.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_midp_is_the_exact_p_less_half_the_observed_probability():
    for won, lost in [(0, 5), (3, 9), (12, 4), (1, 0)]:
        n, few = won + lost, min(won, lost)
        exact = scipy_stats.binomtest(few, n, 0.5).pvalue
        assert stats.mcnemar_midp(won, lost) == pytest.approx(exact - scipy_stats.binom.pmf(few, n, 0.5), rel=1e-9)
    assert stats.mcnemar_midp(0, 0) == 1.0
    assert stats.mcnemar_midp(4, 4) == pytest.approx(1.0)


def test_bootstrap_agrees_with_scipy_and_covers():
    rng = np.random.default_rng(0)
    a, b = (rng.random(150) < 0.6).astype(float), (rng.random(150) < 0.4).astype(float)
    ours = stats.paired_bootstrap(a, b)
    theirs = scipy_stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.008)
    hits = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        x = (rng.random(120) < 0.55).astype(float)
        y = np.where(rng.random(120) < 0.7, x, rng.random(120) < 0.4)
        low, high = stats.paired_bootstrap(x, y, seed=trial)
        hits += low <= 0.3 * (0.55 - 0.4) <= high
    assert 0.90 <= hits / 200 <= 0.99  # 95 % nominal; three standard errors of 200 trials


def test_rows_that_all_agree_rule_out_no_small_gain():
    same = np.zeros(16)
    assert stats.paired_bootstrap(same, same) == (0.0, 0.0)
    low, high = stats.gain_interval(same, same)
    assert low == -high and 0.08 < high < 0.20  # the exact bound for 0 of 16 is 0.17 one-sided
    many = np.zeros(3000)
    assert stats.gain_interval(many, many)[1] < 0.002


def test_adjusted_wald_covers_where_the_bootstrap_does_not():
    covered = {"bootstrap": 0, "gain": 0}
    for trial in range(300):
        rng = np.random.default_rng(trial)
        kinds = rng.choice(3, size=30, p=[0.06, 0.02, 0.92])
        a, b = (kinds == 0).astype(float), (kinds == 1).astype(float)
        for name, interval in (("bootstrap", stats.paired_bootstrap), ("gain", stats.gain_interval)):
            low, high = interval(a, b)
            covered[name] += low <= 0.04 <= high
    assert covered["bootstrap"] < 0.90 * 300 and covered["gain"] >= 0.93 * 300


def test_detectable_effect_has_the_power_it_claims():
    n, share = 300, 0.2
    delta = stats.minimum_detectable_effect(40, 20, n)
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        kinds = rng.choice(3, size=n, p=[(share + delta) / 2, (share - delta) / 2, 1 - share])
        found += stats.mcnemar_midp(int((kinds == 0).sum()), int((kinds == 1).sum())) < 0.05
    assert 0.72 <= found / 400 <= 0.88
    assert stats.minimum_detectable_effect(0, 0, 3) == 1.0 and stats.minimum_detectable_effect(0, 0, 5) > 0.6
    assert stats.minimum_detectable_effect(10, 10, 10_000) < stats.minimum_detectable_effect(10, 10, 1_000)
