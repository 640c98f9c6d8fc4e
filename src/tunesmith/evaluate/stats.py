"""Statistics of two arms on the same rows, with scipy: intervals, the test that goes with them, non-inferiority.

Two arms answer the same rows, so they are compared row by row. The unpaired test that most tools print finds a real gain
of 5 points on 200 rows one time in twenty where half of the rows are right; the paired one finds it four times in ten.

**The interval of a gain in yes/no scores** is Tango's score interval: all gains that the score test does not reject. It holds
95 % as near as whole rows allow: 93.2 to 97.0 % of the time (by exact enumeration, n = 100, 200, 400, 3 to 40 % of the rows
discordant, gains of 0 to 10 points). It stays honest where few rows differ: sixteen ties rule out nothing below 19 points. It
excludes zero exactly where the p beside it, of McNemar's test without correction, is below 5 %. Refused: the bootstrap, which
is a point where all rows agree; the adjusted Wald interval (Agresti and Min 2005), which holds 99 % where 3 of 100 rows differ
and finds a true gain of 2 points there half as often; and the hull of both, which is wider still.

Scores that are not yes or no, corpus figures and grouped rows are bootstrapped (``resample.py``). A bootstrap knows only
what it has seen, so where fewer than ten units differ its interval is never inside the score interval of the signs.

**Non-inferiority** turns the question round: is it certain that no more than a margin was lost? A large p-value of "no
difference" is not evidence of none, so few rows give "too little data to tell".

``score_limits`` takes arrays of counts, for many comparisons at once; what power a decision has says ``rule.py``.
Sources: Wilson 1927; McNemar 1947; Tango 1998 (score interval of a paired difference); non-inferiority, Piaggio et al. 2012
(CONSORT).

Shape suffixes: N rows; here: U units, B draws, K sums.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tunesmith.evaluate import resample
from tunesmith.evaluate.interval import Interval
from tunesmith.rundir.records.evidence import NonInferiority

ALPHA = 0.05
MIN_DISCORDANT_UNITS = 10  # differing units below which a bootstrap is not believed alone

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def wilson(successes: int, n: int, tail: float = ALPHA / 2) -> Interval:
    """Wilson interval of a rate, 95 % unless told otherwise.

    >>> low, high = wilson(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    z2, p = float(special.ndtri(1 - tail)) ** 2, successes / n
    middle, reach = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    low, high = (middle - reach) / (1 + z2 / n), (middle + reach) / (1 + z2 / n)
    return Interval(low if successes else 0.0, high if successes < n else 1.0)


def exact_low(successes: int, n: int, tail: float) -> float:
    """Lower end of the exact (Clopper-Pearson) interval of a rate: too high at most ``tail`` of the time, whatever the rate.

    >>> round(exact_low(29, 29, 0.05), 3)
    0.902
    """
    return float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0


def discordant(a: Floats, b: Floats) -> tuple[int, int]:
    """Rows where ``a`` scores higher (in yes/no scores: that only ``a`` got right), and rows where ``b`` does."""
    return int((a > b).sum()), int((a < b).sum())


def score_p(only_a: int, only_b: int) -> float:
    """Two-sided p of the score test of "no difference" from the discordant counts (McNemar's without correction).

    Below 0.05 exactly where ``score_interval`` excludes 0; 1 when there are no discordant rows.

    >>> round(score_p(3, 9), 4)
    0.0833
    """
    differing = only_a + only_b
    return 2.0 * float(special.ndtr(-abs(only_a - only_b) / math.sqrt(differing))) if differing else 1.0


@functools.lru_cache(1 << 16)  # the same counts come again in a simulation
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
    z = -float(special.ndtri(tail))

    def end(sign: float) -> Floats:
        inside, outside = (b - c) / n, np.full(b.shape, -sign)
        for _ in range(32):  # bisection: the statistic falls as delta grows, and is 0 at the observed difference
            middle = (inside + outside) / 2
            rejected = sign * score_statistic(b, c, n, middle) > z
            inside, outside = np.where(rejected, inside, middle), np.where(rejected, middle, outside)
        return inside

    return end(1.0), end(-1.0)


def never_below_the_signs(p: float, difference_U: Floats) -> float:
    """The p that goes with ``never_inside_the_signs``."""
    only_a, only_b = int((difference_U > 0).sum()), int((difference_U < 0).sum())
    return p if only_a + only_b >= MIN_DISCORDANT_UNITS else max(p, score_p(only_a, only_b))


def score_statistic(b: Floats, c: Floats, n: int, delta: Floats) -> Floats:
    """Tango's statistic of a difference ``delta``, ``b`` and ``c`` of ``n`` rows being discordant; standard normal if true."""
    # q: most likely rate of "only b" among all with a difference of delta, the root of 2n q^2 + linear q + constant
    linear, constant = (2 * n - b + c) * delta - b - c, -c * delta * (1.0 - delta)
    q = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    return (b - c - n * delta) / np.sqrt(np.maximum(n * (2.0 * q + delta * (1.0 - delta)), 1e-12))


def never_inside_the_signs(interval: Interval, difference_U: Floats, tail: float) -> Interval:
    """A bootstrapped interval of a gain, widened to the score interval of the signs where fewer than ten units differ."""
    only_a, only_b = int((difference_U > 0).sum()), int((difference_U < 0).sum())
    if only_a + only_b >= MIN_DISCORDANT_UNITS:
        return interval
    return interval.hull(score_interval(only_a, only_b, len(difference_U), tail))


def discordant_share(only_a: int, only_b: int, n: int) -> float:
    """Share of the rows on which two arms differ, at least 3/n: the 95 % bound where none of n does."""
    return max((only_a + only_b) / n, min(1.0, 3.0 / n))


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
