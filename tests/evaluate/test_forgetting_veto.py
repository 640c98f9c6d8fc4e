"""How often the forgetting suite vetoes a model that lost nothing, and one that lost something."""

import numpy as np
import pytest
from scipy.stats import multinomial

from tunesmith.evaluate import forgetting, stats

MARGIN, ITEMS, TASKS = 0.02, 100, 10


def _paired(name, differences_N, binary):
    return forgetting.Paired(
        name=name,
        label=name,
        base_N=np.full(len(differences_N), 0.5),
        tuned_N=0.5 + differences_N,
        differences_N=differences_N,
        margin=MARGIN,
        unit="share",
        binary=binary,
    )


def _vetoes(vetoes):
    """Counts of items won and lost, of ``ITEMS``, at which one task of so many is a regression."""
    counts = []
    for lost in range(46):
        for won in range(min(lost, 46 - lost)):
            differences_N = np.repeat([1.0, -1.0, 0.0], [won, lost, ITEMS - won - lost])
            if stats.non_inferior(differences_N, MARGIN, binary=True, vetoes=vetoes).verdict == "regression":
                counts.append([won, lost, ITEMS - won - lost])
    return np.array(counts)


def _rate(counts, share, loss, tasks=TASKS):
    """Exact chance that any of so many tasks vetoes, where this share of the items changes."""
    rates = [(share - loss) / 2, (share + loss) / 2, 1.0 - share]
    one = multinomial.pmf(counts, ITEMS, rates).sum()
    return 1.0 - (1.0 - one) ** tasks


@pytest.fixture(scope="module")
def corrected():
    return _vetoes(TASKS)


def test_ten_tasks_veto_a_model_that_lost_nothing_one_time_in_twenty(corrected):
    assert _rate(_vetoes(1), 0.2, 0.0) == pytest.approx(0.39, abs=0.01)  # what the correction is for
    assert all(0.01 < _rate(corrected, share, 0.0) <= 0.05 for share in (0.05, 0.1, 0.2, 0.3))


def test_a_real_loss_is_vetoed(corrected):
    assert _rate(corrected, 0.25, 0.10, tasks=1) == pytest.approx(0.27, abs=0.02)
    assert _rate(corrected, 0.30, 0.20, tasks=1) == pytest.approx(0.90, abs=0.02)
    assert _rate(corrected, 0.25, 0.10) == pytest.approx(0.96, abs=0.02)


@pytest.mark.slow
def test_the_whole_suite_vetoes_a_model_that_lost_nothing_one_time_in_twenty():
    draws, runs = np.random.default_rng(0), 120
    vetoes = 0
    for _ in range(runs):
        own = [_paired(f"own {i}", draws.normal(0.0, sd, 120), binary=False) for i, sd in enumerate((0.15, 0.03))]
        tasks = [_paired(f"task {i}", draws.choice([1.0, -1.0, 0.0], ITEMS, p=[0.1, 0.1, 0.8]), True) for i in range(TASKS)]
        vetoes += forgetting.conclude([*own, *tasks], [], MARGIN).verdict == "regression"
    assert vetoes / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
