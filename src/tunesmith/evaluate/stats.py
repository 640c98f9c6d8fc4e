"""Statistics of two arms on the same rows, with scipy: intervals, tests, power, non-inferiority.

Two arms answer the same rows, so they are compared row by row. The unpaired test that most tools print finds a real gain
of 5 points on 200 rows one time in twenty; the paired one finds it four times in ten.

**The interval of a gain in yes/no scores** is Tango's score interval: all gains that the score test does not reject. It
holds 95 % as near as whole rows allow: 93.2 to 97.0 % of the time (by exact enumeration, n = 100, 200, 400, 3 to 40 % of
the rows discordant, gains of 0 to 10 points). It stays honest where few rows differ: sixteen ties rule out nothing below 19
points. It excludes zero exactly where McNemar's test rejects at 5 %. Refused: the bootstrap, which is a point where all rows
agree; the adjusted Wald interval (Agresti and Min 2005), which holds 99 % where 3 of 100 rows differ and finds a true gain
of 2 points there half as often; and the hull of both, which is wider still.

Scores that are not yes or no, corpus figures and grouped rows are bootstrapped (``resample.py``). A bootstrap knows only
what it has seen, so where fewer than ten units differ its interval is never inside the score interval of the signs.

**Non-inferiority** turns the question round: is it certain that no more than a margin was lost? A large p-value of "no
difference" is not evidence of none, so few rows give "too little data to tell".

``midp_values`` and ``score_limits`` take arrays of counts, for many comparisons at once.
Sources: Wilson 1927; McNemar's mid-p, Fagerland, Lydersen and Laake 2013; Tango 1998 (score interval of a paired
difference); power of McNemar's test, Connor 1987; Holm 1979; non-inferiority, Piaggio et al. 2012 (CONSORT).

Shape suffixes: N rows; here: U units, B draws, K sums.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tunesmith.evaluate import resample
from tunesmith.evaluate.interval import Interval
from tunesmith.rundir.records.evidence import NonInferiority

ALPHA = 0.05
POWER = 0.80
MIN_DISCORDANT_UNITS = 10  # differing units below which a bootstrap is not believed alone

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def wilson(successes: int, n: int) -> Interval:
    """95 % Wilson interval of a rate.

    >>> low, high = wilson(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    ends = stats.binomtest(successes, n).proportion_ci(1.0 - ALPHA, method="wilson")
    return Interval(float(ends.low), float(ends.high))


def discordant(a: Floats, b: Floats) -> tuple[int, int]:
    """Rows where ``a`` scores higher (in yes/no scores: that only ``a`` got right), and rows where ``b`` does."""
    return int((a > b).sum()), int((a < b).sum())


def mcnemar_midp(only_a: int, only_b: int) -> float:
    """Two-sided mid-p of McNemar's test from the discordant counts; 1 when there are none.

    >>> round(mcnemar_midp(3, 9), 4)
    0.0923
    """
    return float(midp_values(np.array(only_a), np.array(only_b)))


def midp_values(only_a: Counts, only_b: Counts) -> Floats:
    """``mcnemar_midp`` of arrays of one shape."""
    n, few = only_a + only_b, np.minimum(only_a, only_b)
    p = 2.0 * stats.binom.cdf(few, n, 0.5) - stats.binom.pmf(few, n, 0.5)
    return np.where(n == 0, 1.0, np.minimum(1.0, p))


def score_interval(only_a: int, only_b: int, n: int, tail: float = ALPHA / 2) -> Interval:
    """Tango's score interval of a difference of two paired rates.

    Args:
        only_a, only_b: discordant rows.
        n: all rows, at least 1.
        tail: probability left out at each end: 0.025 for a two-sided 95 % interval.

    Returns:
        Ends in -1..1, to 1e-9.

    >>> low, high = score_interval(1, 7, 21)
    >>> round(low, 3), round(high, 3)
    (-0.517, -0.026)
    """
    low, high = score_limits(np.array(only_a), np.array(only_b), n, tail)
    return Interval(float(low), float(high))


def score_limits(only_a: Counts, only_b: Counts, n: int, tail: float = ALPHA / 2) -> tuple[Floats, Floats]:
    """Low and high ends of ``score_interval`` of arrays of one shape."""
    b, c = only_a.astype(np.float64), only_b.astype(np.float64)
    z = -float(stats.norm.ppf(tail))

    def statistic(delta: Floats) -> Floats:
        # q: most likely rate of "only b" among all with a difference of delta, the root of 2n q^2 + linear q + constant
        linear, constant = (2 * n - b + c) * delta - b - c, -c * delta * (1.0 - delta)
        q = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        return (b - c - n * delta) / np.sqrt(np.maximum(n * (2.0 * q + delta * (1.0 - delta)), 1e-12))

    def end(sign: float) -> Floats:
        inside, outside = (b - c) / n, np.full(b.shape, -sign)
        for _ in range(32):  # bisection: the statistic falls as delta grows, and is 0 at the observed difference
            middle = (inside + outside) / 2
            rejected = sign * statistic(middle) > z
            inside, outside = np.where(rejected, inside, middle), np.where(rejected, middle, outside)
        return inside

    return end(1.0), end(-1.0)


def never_inside_the_signs(interval: Interval, difference_U: Floats, tail: float) -> Interval:
    """A bootstrapped interval of a gain, widened to the score interval of the signs where fewer than ten units differ."""
    only_a, only_b = int((difference_U > 0).sum()), int((difference_U < 0).sum())
    if only_a + only_b >= MIN_DISCORDANT_UNITS:
        return interval
    return interval.hull(score_interval(only_a, only_b, len(difference_U), tail))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the chance of even one false finding stays at 5 % over all.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    order = np.argsort(np.array(p), kind="stable")
    adjusted, so_far = [1.0] * len(p), 0.0
    for rank, index in enumerate(order.tolist()):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = so_far
    return adjusted


def minimum_detectable_effect(only_a: int, only_b: int, n: int) -> float:
    """Smallest difference of two rates that McNemar's test on n such rows finds with 80 % power at 5 %.

    The share of discordant rows is taken from the data, at least 3/n (what zero of n still allows).

    Returns:
        The difference, 1.0 when even a total disagreement would not be found.
    """
    share = discordant_share(only_a, only_b, n)

    def lacking(delta: float) -> float:
        return math.sqrt(n) - math.sqrt(_rows_for(delta, share))

    if lacking(1.0) < 0.0:
        return 1.0
    return float(optimize.brentq(lacking, 1e-9, 1.0))  # pyright: ignore[reportArgumentType] - without full_output a float


def n_needed(gain: float, share: float) -> int:
    """Rows on which McNemar's test at 5 % finds a gain with 80 % power.

    Args:
        gain: difference of the rates, above 0.
        share: share of the rows on which the arms differ (0..1); a gain needs at least as many.

    >>> n_needed(0.05, 0.2)
    626
    """
    return math.ceil(_rows_for(gain, share) - 1e-9)


def discordant_share(only_a: int, only_b: int, n: int) -> float:
    """Share of the rows on which two arms differ, at least 3/n: the 95 % bound where none of n does."""
    return max((only_a + only_b) / n, min(1.0, 3.0 / n))


def spread_of_power() -> float:
    """How many standard errors a gain must measure to be found with 80 % power at 5 %: 2.80."""
    return float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))


def _rows_for(delta: float, share: float) -> float:
    z_alpha, z_power = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(POWER)
    share = max(share, delta)  # a difference of delta needs at least that share of discordant rows
    return float((z_alpha * math.sqrt(share) + z_power * math.sqrt(max(share - delta**2, 0.0))) / delta) ** 2


class NonInferior(NamedTuple):
    """What ``non_inferior`` finds: the verdict, the mean difference, and its one-sided 95 % lower bound."""

    verdict: NonInferiority
    mean: float
    bound: float


def non_inferior(
    differences: Floats,
    margin: float,
    clusters: Sequence[str] | None = None,
    binary: bool | None = None,
    vetoes: int = 1,
) -> NonInferior:
    """Whether no more than a margin was lost.

    ``no regression``: the one-sided 95 % lower bound lies above -margin. ``regression``: at least the margin was lost,
    and a loss is certain (one-sided 95 % upper bound below 0, or that of 1 - 5 % / vetoes). Anything else is too little data
    to tell.

    Args:
        differences: tuned minus base for each item, higher is better, shape (N,); at least 2 items (and groups).
        margin: largest loss that does not matter, above 0, in the unit of the differences.
        clusters: group of each item where items hang together.
        binary: whether the items are right or wrong; when not given, they are where all differences are -1, 0 or 1.
            It matters where few items differ: 100 equal answers leave room for 3 in 100 that are not, while 100 equal
            log-probabilities are a model that did not change.
        vetoes: how many decisions like this one there are, any of which is a veto (Bonferroni).
    """
    mean = float(differences.mean())
    if binary is None:
        binary = bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
    lower, upper = (_bounds(differences, clusters, binary, tail) for tail in (ALPHA, ALPHA / vetoes))
    low, high = lower.low, upper.high
    if low > -margin:
        return NonInferior("no regression", mean, low)
    return NonInferior("regression" if mean <= -margin and high < 0.0 else "too little data to tell", mean, low)


def _bounds(differences: Floats, clusters: Sequence[str] | None, binary: bool, tail: float) -> Interval:
    if not binary or clusters is not None:
        return mean_interval(differences, resample.units(clusters, len(differences)), tail, binary)
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    return score_interval(only_a, only_b, len(differences), tail)


def mean_interval(values_N: Floats, unit_N: NDArray[np.int64], tail: float = ALPHA / 2, signs: bool = False) -> Interval:
    """Bootstrap interval of a mean over units drawn again; at least 2 units.

    Args:
        signs: whether the values are differences of scores in 0..1, so that ``never_inside_the_signs`` holds.
    """
    sums_UK = resample.per_unit(np.stack([values_N, np.ones_like(values_N)], axis=1), unit_N)
    u = len(sums_UK)
    sums_BK = np.concatenate([weight_BU @ sums_UK for weight_BU in resample.weights(u, resample.DRAWS)])
    interval = resample.percentile_interval(sums_BK[:, 0] / sums_BK[:, 1], u, tail)
    return never_inside_the_signs(interval, sums_UK[:, 0], tail) if signs else interval
