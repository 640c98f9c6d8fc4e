"""Simulated tasks: what the statistics promise must hold over thousands of test parts drawn from known rates.

Discordant counts are all that a yes/no comparison depends on, so 2,000 tasks are 2,000 draws of three numbers.
"""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from outputs import outputs
from tunesmith.evaluate import resample, stats
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.gate import Case, decide
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.rule import is_shown
from tunesmith.rundir.records.evaluation import Terms

TASKS = 2000
YES_NO = Metric(name="exact_match", score=lambda answer, reference: {"score": 1.0}, tie_break="score", binary=True)
CELLS = [
    (n, share, gain)
    for n in (100, 200, 400)
    for share in (0.05, 0.1, 0.2, 0.3, 0.4)
    for gain in (0.0, 0.02, 0.05, 0.1)
    if gain <= share
]


def _rates(share, gain):
    return [(share + gain) / 2, (share - gain) / 2, 1 - share]


def _tasks(n, share, gain, tasks=TASKS, seed=0):
    """Discordant counts of simulated test parts: shapes (tasks,), (tasks,)."""
    x = np.random.default_rng(seed).multinomial(n, _rates(share, gain), size=tasks)
    return x[:, 0], x[:, 1]


@pytest.mark.parametrize(("n", "share", "gain"), CELLS)
def test_the_interval_of_a_gain_covers_95_of_100(n, share, gain):
    """Over 2,000 simulated tasks, and exactly: the probability of all tables whose interval holds the true gain."""
    low, high = stats.score_limits(*_tasks(n, share, gain), n)
    simulated = ((low <= gain + 1e-9) & (gain - 1e-9 <= high)).mean()
    counts = np.arange(int(min(n, n * share + 6 * np.sqrt(n * share))) + 1)
    b, c = (grid.ravel() for grid in np.meshgrid(counts, counts))
    b, c = b[b + c <= n], c[b + c <= n]
    low, high = stats.score_limits(b, c, n)
    probability = scipy_stats.multinomial.pmf(np.stack([b, c, n - b - c], axis=1), n, _rates(share, gain))
    assert probability.sum() == pytest.approx(1.0, abs=1e-6)
    exact = probability[(low <= gain + 1e-9) & (gain - 1e-9 <= high)].sum()
    assert 0.93 <= exact <= 0.97
    assert simulated == pytest.approx(exact, abs=0.017)  # three standard errors of 2,000 tasks


def test_where_almost_no_row_differs_the_interval_covers_too_much_rather_than_too_little():
    for share, gain in ((0.01, 0.0), (0.01, 0.01), (0.02, 0.01), (0.02, 0.02)):
        low, high = stats.score_limits(*_tasks(100, share, gain), 100)
        assert ((low <= gain + 1e-9) & (gain - 1e-9 <= high)).mean() >= 0.93


@pytest.mark.parametrize(("n", "expected"), [(100, 0.25), (200, 0.42), (400, 0.76)])
def test_power_is_what_the_table_says(n, expected):
    """A true gain of 5 points with 15 % of the rows discordant."""
    b, c = _tasks(n, 0.15, 0.05, tasks=20_000)
    assert (stats.score_limits(b, c, n)[0] > 0).mean() == pytest.approx(expected, abs=0.045)


@pytest.mark.parametrize("n", [50, 100, 200, 400])
def test_tuning_that_gains_nothing_seldom_wins(n):
    for share in (0.05, 0.15, 0.4):
        b, c = _tasks(n, share, 0.0, tasks=20_000, seed=n)
        assert (stats.score_limits(b, c, n)[0] > 0).mean() <= 0.035  # "tuned wins"; nominal 2.5 %


def test_whole_comparisons_decide_as_promised():
    """Not the formula but the path that a run takes, 200 tasks of 120 rows with and without a true gain."""
    decisions_of = {0.0: [], 0.12: []}
    for gain, decisions in decisions_of.items():
        for won, lost in zip(*_tasks(120, 0.2, gain, tasks=200), strict=True):
            c = compare(
                outputs([1] * won + [0] * (120 - won)), outputs([0] * won + [1] * lost + [0] * (120 - won - lost)), YES_NO
            )
            case = Case(terms=Terms(min_gain=0.03), comparisons=(c,))
            decisions.append((decide(case).decision, c.low <= gain <= c.high))
    for decisions in decisions_of.values():
        assert np.mean([covered for _, covered in decisions]) == pytest.approx(0.95, abs=0.045)
    assert np.mean([decision == "deploy" for decision, _ in decisions_of[0.0]]) <= 0.05
    power = (stats.score_limits(*_tasks(120, 0.2, 0.12, tasks=20_000, seed=1), 120)[0] > 0).mean()
    assert np.mean([decision == "deploy" for decision, _ in decisions_of[0.12]]) == pytest.approx(power, abs=0.07)
    assert not any(decision in ("not better", "prompting is enough") for decision, _ in decisions_of[0.12])


def test_bootstrap_covers_where_scores_are_not_yes_or_no():
    """Differences of two skewed scores on 100 rows. All tasks share the draws, so that 2,000 are one product."""
    rng = np.random.default_rng(0)
    base = rng.beta(4, 1, (100, TASKS))
    differences = np.where(rng.random((100, TASKS)) < 0.3, rng.beta(1, 3, (100, TASKS)), base) - base
    expected = 0.3 * (0.25 - 0.8)
    draws = np.concatenate(list(resample.weights(100, 1000)))
    low, high = resample.percentile_limits(draws @ differences / 100, 100, 0.025)
    assert 0.93 <= ((low <= expected) & (expected <= high)).mean() <= 0.97


def test_bootstrap_of_groups_covers_where_that_of_rows_does_not():
    """40 groups of 1 to 6 yes/no rows each that hang together; without groups the interval would be far too narrow."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 7, 40)
    unit = np.repeat(np.arange(40), sizes)
    lean = rng.choice(3, size=(40, TASKS), p=[0.25, 0.15, 0.6])[unit]
    kind = np.where(rng.random((len(unit), TASKS)) < 0.8, lean, rng.choice(3, size=(len(unit), TASKS), p=[0.25, 0.15, 0.6]))
    difference = (kind == 0).astype(float) - (kind == 1)
    covered = {}
    for name, unit_N in (("groups", unit), ("rows", np.arange(len(unit)))):
        u = int(unit_N.max()) + 1
        draws = np.concatenate(list(resample.weights(u, 1000)))
        means = (draws @ resample.per_unit(difference, unit_N)) / (draws @ np.bincount(unit_N))[:, None]
        low, high = resample.percentile_limits(means, u, 0.025)
        covered[name] = ((low <= 0.1) & (high >= 0.1)).mean()
    assert 0.93 <= covered["groups"] <= 0.97 and covered["rows"] < 0.85


def test_copies_of_a_question_are_no_evidence():
    """100 questions asked three times each, answered alike by equal models: as 300 rows they let too many through."""
    shown = {"questions": 0, "rows": 0}
    asked = [str(row // 3) for row in range(300)]
    for won, lost in zip(*_tasks(100, 0.2, 0.0, tasks=60), strict=True):
        arms = [
            np.repeat([1] * first + [0] * (100 - first - second) + [1] * second, 3) for first, second in ((won, 0), (0, lost))
        ]
        for name, groups in (("questions", asked), ("rows", None)):
            shown[name] += is_shown(compare(outputs(arms[0]), outputs(arms[1]), YES_NO, groups), Terms(min_gain=0.03))
    assert shown["questions"] <= 0.05 * 60 and shown["rows"] > 0.08 * 60


def test_bootstrap_of_macro_f1_covers():
    """Three classes, 120 rows, arms right in 80 and 70 of 100 and wrong at random."""
    rng = np.random.default_rng(2)
    tasks, n, classes = TASKS, 120, np.array([0.5, 0.3, 0.2])

    def counts(right, size):
        label = rng.choice(3, size=size, p=classes)
        answer = np.where(rng.random(size) < right, label, rng.integers(0, 3, size))
        masks = label[..., None] == np.arange(3), answer[..., None] == np.arange(3)
        return np.concatenate([masks[0] & masks[1], masks[0], masks[1]], axis=-1).astype(np.float64)

    def value(sums):
        right, asked, answered = np.split(sums, 3, axis=-1)
        return (2 * right / np.maximum(1, asked + answered)).mean(axis=-1)

    expected = value(counts(0.8, 2_000_000).sum(axis=0)) - value(counts(0.7, 2_000_000).sum(axis=0))
    draws = np.concatenate(list(resample.weights(n, 400)))
    ours, theirs = counts(0.8, (tasks, n)), counts(0.7, (tasks, n))
    covered = 0
    for a_NK, b_NK in zip(ours, theirs, strict=True):
        low, high = resample.percentile_interval(value(draws @ a_NK) - value(draws @ b_NK), n, 0.025)
        covered += low <= expected <= high
    assert 0.93 <= covered / tasks <= 0.97


def test_non_inferiority_seldom_overlooks_a_loss_or_invents_one():
    margin, n = 0.02, 1000
    at_the_margin, no_loss = (_tasks(n, 0.1, gain, tasks=500) for gain in (-margin, 0.0))
    low, _ = stats.score_limits(*at_the_margin, n, stats.ALPHA)
    assert (low > -margin).mean() <= 0.08  # "no regression" of a model that lost the margin; nominal 5 %
    verdicts = [
        stats.non_inferior(np.repeat([1.0, -1.0, 0.0], [won, lost, n - won - lost]), margin)[0]
        for won, lost in zip(*no_loss, strict=True)
    ]
    assert verdicts.count("regression") <= 0.05 * 500 and verdicts.count("no regression") > 300
