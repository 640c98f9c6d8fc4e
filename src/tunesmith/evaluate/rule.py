"""The rule on one comparison, and what it takes to pass it: power, rows needed, rows to settle.

A gain is *shown* when it is as large as the recipe asks (``task.min_gain``) and certain: by ``task.certainty: better`` the 95
% interval lies above zero, by ``worth`` it lies above ``min_gain``. A gain is *ruled out* when the interval lies below
``min_gain``. For an adapter that is not the first on its test rows the interval is a wider one (``tries.py``), and all that
follows here is of that one.

**Power is that of this rule**, not of a test that is a part of it. Under ``better`` a true gain of exactly ``min_gain`` is
shown half of the time, however many rows there are, since the gain that is seen comes out below it half of the time. So no
number of rows finds ``min_gain`` four times in five, and none is promised: rows are planned for twice ``min_gain``.

For right-or-wrong rows the power is exact: given the number of rows that differ (binomial), the rule is a bound on how many of
them were won (binomial again). Everything else is normal, with the standard error that was seen.

Refused: McNemar's formula (Connor 1987), which gives the power of "above zero" alone: at a true gain of 6 points and a
``min_gain`` of 5 it says 80 % where 68 % are deployed.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy import stats as scipy_stats

from tunesmith.evaluate import stats
from tunesmith.evaluate.compare import standard_error
from tunesmith.rundir.records.evaluation import Comparison, Terms, Worth

POWER = 0.80
PLANNED = 2.0  # times min_gain: the gain that rows are planned for
MAX_ROWS_FACTOR = 100  # times the rows there are: no number to collect
MOST_ROWS = 1_000_000
_Z_POWER = float(special.ndtri(POWER))
_EVEN = 1e-9  # 0.15 - 0.10 is below 0.05 in floating point


def is_shown(c: Comparison, terms: Terms) -> bool:
    """Whether the gain is as large and as certain as the recipe asks."""
    certain = c.low > 0.0 if terms.certainty == "better" else c.low >= terms.min_gain - _EVEN and c.low > 0.0
    return certain and c.gain >= terms.min_gain - _EVEN


def is_as_good(c: Comparison, terms: Terms) -> bool:
    """Whether it is certain that nothing as large as ``min_gain`` is lost."""
    return c.low > -terms.min_gain + _EVEN


def is_too_much_lost(c: Comparison, terms: Terms) -> bool:
    """Whether it is certain that ``min_gain`` or more is lost."""
    return c.high <= -terms.min_gain + _EVEN and c.high < 0.0


def is_ruled_out(c: Comparison, terms: Terms) -> bool:
    """Whether a gain of ``min_gain`` is ruled out."""
    return c.high < terms.min_gain - _EVEN


def worth(c: Comparison, terms: Terms) -> Worth:
    """How sure it is that the gain is ``min_gain`` or more."""
    if c.low >= terms.min_gain - _EVEN and c.low > 0.0:
        return "certain"
    if is_ruled_out(c, terms):
        return "ruled out"
    return "likely" if c.gain >= terms.min_gain - _EVEN else "not shown"


def power(n: int, share: float, gain: float, terms: Terms) -> float:
    """Probability that ``n`` right-or-wrong rows show a true gain.

    Args:
        share: of the rows on which the two arms differ; at least the gain.

    >>> round(power(626, 0.2, 0.05, Terms(min_gain=0.05)), 2), round(power(626, 0.2, 0.10, Terms(min_gain=0.05)), 2)
    (0.49, 1.0)
    """
    m, probability = _discordant(n, share)
    z = _z(terms)
    least = (m + z * np.sqrt(m)) / 2  # low > 0: Tango's statistic at a difference of 0 is (won - lost) / sqrt(won + lost)
    won = np.floor(least + _EVEN) + 1
    won = np.maximum(won, np.ceil((m + n * (terms.min_gain - _EVEN)) / 2))
    if terms.certainty == "worth":
        won = np.maximum(won, _first_won(m, n, terms.min_gain, z))
    return float((probability * scipy_stats.binom.sf(won - 1, m, _share_won(share, gain))).sum())


def power_to_rule_out(n: int, share: float, gain: float, terms: Terms) -> float:
    """Probability that ``n`` right-or-wrong rows rule ``min_gain`` out where the true gain is a smaller one."""
    m, probability = _discordant(n, share)
    won = _first_won(m, n, terms.min_gain, -_z(terms))
    return float((probability * scipy_stats.binom.cdf(won - 1, m, _share_won(share, gain))).sum())


def detectable(c: Comparison, terms: Terms) -> float:
    """The smallest true gain that as many such rows show four times in five; 1.0 where they show none."""
    if not c.yes_no:
        error = standard_error(c)
        return min(1.0, _shown_at(error, terms))
    return detectable_gain(c.n, stats.discordant_share(c.won, c.lost, c.n), terms)


@functools.cache
def detectable_gain(n: int, share: float, terms: Terms) -> float:
    """The same for ``n`` right-or-wrong rows of which a share differs, to 0.0001."""

    def shown(gain: float) -> bool:
        return power(n, max(share, gain), gain, terms) >= POWER

    low, high = max(terms.min_gain, 0.0), 1.0
    if not shown(high):
        return 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def planned_gain(terms: Terms) -> float:
    """The gain that rows are planned for; 0 where the recipe says of none that it is worth it."""
    return min(1.0, PLANNED * terms.min_gain)


def rows_needed(c: Comparison, gain: float, terms: Terms) -> int | None:
    """Rows of this kind that show a true gain four times in five; None where no number does."""
    if not c.yes_no:
        error = min((gain - terms.min_gain) / _Z_POWER, gain / (_z(terms) + _Z_POWER))
        if terms.certainty == "worth":
            error = (gain - terms.min_gain) / (_z(terms) + _Z_POWER)
        return _rows_for(c, error)
    return planned_rows(stats.discordant_share(c.won, c.lost, c.n), gain, terms)


@functools.cache
def planned_rows(share: float, gain: float, terms: Terms) -> int | None:
    """The same for right-or-wrong rows of which a share differs.

    >>> planned_rows(0.2, 0.10, Terms(min_gain=0.05))
    145
    """
    if gain <= terms.min_gain:
        return None
    return _smallest(lambda n: power(n, max(share, gain), gain, terms))


def rows_to_settle(c: Comparison, terms: Terms) -> int | None:
    """Rows, all together, that settle four times in five what these could not, if the gain is what it was here.

    Settled is a gain that is large enough when it is shown, and a smaller one when ``min_gain`` is ruled out.

    Returns:
        None where ``MAX_ROWS_FACTOR`` times these would not: the gain is too near ``min_gain`` for so few.
    """
    if c.gain > terms.min_gain:
        rows = rows_needed(c, c.gain, terms)
    elif not c.yes_no:
        rows = _rows_for(c, (terms.min_gain - c.gain) / (_z(terms) + _Z_POWER))
    elif c.gain == terms.min_gain:
        rows = None
    else:
        rows = _rows_to_rule_out(stats.discordant_share(c.won, c.lost, c.n), c.gain, terms)
    return None if rows is None or rows > MAX_ROWS_FACTOR * c.n else max(c.n + 1, rows)


@functools.cache
def _rows_to_rule_out(share: float, gain: float, terms: Terms) -> int | None:
    return _smallest(lambda n: power_to_rule_out(n, max(share, abs(gain)), gain, terms))


def _z(terms: Terms) -> float:
    """Standard errors to either side of the interval: 1.96 for the first adapter on a test part."""
    return float(special.ndtri(1 - terms.alpha / 2))


def _discordant(n: int, share: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numbers of differing rows that are not next to impossible, and their probabilities."""
    reach = 8.0 * math.sqrt(n * share * (1.0 - share)) + 8.0
    m = np.arange(max(0, math.floor(n * share - reach)), min(n, math.ceil(n * share + reach)) + 1).astype(np.float64)
    return m, scipy_stats.binom.pmf(m, n, share)


def _share_won(share: float, gain: float) -> float:
    return 0.5 if share == 0.0 else min(1.0, max(0.0, (share + gain) / (2.0 * share)))


def _first_won(m: NDArray[np.float64], n: int, delta: float, z: float) -> NDArray[np.float64]:
    """For every number of differing rows the fewest won at which Tango's statistic for ``delta`` reaches z; m + 1 for none."""
    low, high = -np.ones_like(m), m + 1.0
    for _ in range(math.ceil(math.log2(float(m.max()) + 2.0)) + 1):
        middle = np.floor((low + high) / 2)
        reached = stats.score_statistic(middle, m - middle, n, np.full_like(m, delta)) >= z
        between = high - low > 1.0
        low, high = np.where(between & ~reached, middle, low), np.where(between & reached, middle, high)
    return high


def _smallest(power_of: Callable[[int], float]) -> int | None:
    """The fewest rows from which the power stays at four in five, to within the steps of whole rows; None above a million."""
    high = 8
    while power_of(high) < POWER:
        if high > MOST_ROWS:  # a gain next to min_gain: no number to collect
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high


def _shown_at(error: float, terms: Terms) -> float:
    """The true gain that an estimate with this standard error shows four times in five."""
    if terms.certainty == "worth":
        return terms.min_gain + (_z(terms) + _Z_POWER) * error
    return max(terms.min_gain + _Z_POWER * error, (_z(terms) + _Z_POWER) * error)


def _rows_for(c: Comparison, error: float) -> int | None:
    """Rows that bring the standard error down to ``error``."""
    return None if error <= 0.0 else math.ceil(c.n * (standard_error(c) / error) ** 2)
