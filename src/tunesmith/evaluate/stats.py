"""Statistics of paired yes/no answers, with scipy.

Two arms answer the same rows, so they are compared row by row. The unpaired test that most tools print finds a real gain
of 5 points on 200 rows one time in twenty; the paired one finds it four times in ten.

A bootstrap of rows that all agree is a point: sixteen ties would "rule out" every gain. The interval of a gain is
therefore never narrower than Agresti and Min's, which stays honest when few rows differ.

Sources: Wilson 1927; McNemar's mid-p, Fagerland, Lydersen and Laake 2013; power of McNemar's test, Connor 1987;
interval of a paired difference, Agresti and Min 2005 (section 2.3, the adjusted Wald interval).
"""

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

BOOTSTRAP = 10_000
ALPHA = 0.05
POWER = 0.80


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a rate."""
    interval = stats.binomtest(successes, n).proportion_ci(1.0 - ALPHA, method="wilson")
    return float(interval.low), float(interval.high)


def discordant(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[int, int]:
    """Rows that only ``a`` got right, and rows that only ``b`` got right."""
    return int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())


def mcnemar_midp(only_a: int, only_b: int) -> float:
    """Two-sided mid-p of McNemar's test from the discordant counts; 1 when there are none."""
    n = only_a + only_b
    if n == 0:
        return 1.0
    few = min(only_a, only_b)
    p = 2.0 * stats.binom.cdf(few, n, 0.5) - stats.binom.pmf(few, n, 0.5)
    return float(min(1.0, p))


def paired_bootstrap(a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of ``mean(a) - mean(b)`` over rows drawn again with replacement.

    Args:
        a, b: scores of the same rows, shape (n,).
    """
    difference = a - b
    rng = np.random.default_rng(seed)
    means = np.empty(BOOTSTRAP)
    for start in range(0, BOOTSTRAP, 1000):
        draws = rng.integers(0, len(difference), size=(1000, len(difference)))
        means[start : start + 1000] = difference[draws].mean(axis=1)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def adjusted_wald(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """95 % interval of a difference of paired rates: Wald's, with half a row added to each of the four cells."""
    b, c, m = only_a + 0.5, only_b + 0.5, n + 2.0
    centre = (b - c) / m
    reach = stats.norm.ppf(1 - ALPHA / 2) * np.sqrt(b + c - (b - c) ** 2 / m) / m
    return float(centre - reach), float(centre + reach)


def gain_interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the gain of ``a`` over ``b`` in yes/no scores: paired bootstrap, never inside the adjusted Wald."""
    low, high = paired_bootstrap(a, b)
    wald_low, wald_high = adjusted_wald(*discordant(a, b), len(a))
    return max(-1.0, min(low, wald_low)), min(1.0, max(high, wald_high))


def minimum_detectable_effect(only_a: int, only_b: int, n: int) -> float:
    """Smallest difference of two rates that McNemar's test on n such rows finds with 80 % power at 5 %.

    The share of discordant rows is taken from the data, at least 3/n (what zero of n still allows).

    Returns:
        The difference, 1.0 when even a total disagreement would not be found.
    """
    share = max((only_a + only_b) / n, min(1.0, 3.0 / n))
    z_alpha, z_power = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(POWER)

    def lacking(delta: float) -> float:
        spread = max(share, delta)  # a difference of delta needs at least that share of discordant rows
        return delta * np.sqrt(n) - z_alpha * np.sqrt(spread) - z_power * np.sqrt(max(spread - delta**2, 0.0))

    if lacking(1.0) < 0.0:
        return 1.0
    return optimize.brentq(lacking, 1e-9, 1.0)  # pyright: ignore[reportReturnType] - without full_output it is a float
