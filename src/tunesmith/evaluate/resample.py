"""Intervals and p-values by drawing the test rows again: for scores that are not yes or no, and for rows that belong together.

A score that is not the mean of yes/no answers (ROUGE, macro-F1, BLEU) has no formula for its error that one would trust, so
the rows are drawn again with replacement and the figure is computed anew: the paired bootstrap. Both arms get the same draws,
so what a hard row does to both cancels out. Rows of one group (``data.group_by``: one document, one customer; or one question
asked again) are drawn together: taken for independent, 300 rows of 30 documents would look like ten times the evidence they
are.

**Sums instead of rows.** Most figures follow from sums over rows (a mean from score and 1; macro-F1 from the counts of
each class; BLEU from matches, totals and lengths). For those (``SumStatistic``) all draws are one matrix product, 10,000 of
them in milliseconds. Any other function of rows is called 2,000 times for each arm, once a draw.

**Few units.** The percentile interval of few units is too narrow, as a normal interval is where Student's t is due. Its
quantiles are moved outwards by exactly that (the expanded percentile interval), which for 30 groups covers 94 % instead of 92.
The refused alternatives: BCa (a jackknife more for a skewness that differences of two arms hardly have) and bootstrap-t
(an error for every draw, which a corpus figure does not offer).

**Imagined rows.** A bootstrap cannot draw what no row shows: with two rows of a class, both right, every draw that holds one
has it right. Macro-F1, where such a class weighs as much as one of a thousand rows, therefore brings a few imagined rows
(``Imagined``), as a prior does; they change the interval alone, never the figure.

Sources: Efron and Tibshirani 1993 (chapters 13, 15); Hesterberg 2015, "What teachers should know about the bootstrap",
section 5.3 (expanded percentile).

Shape suffixes: N rows; here: U units (groups, or rows where none are given), B draws, K sums, A arms, P imagined rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tunesmith.evaluate.interval import Interval
from tunesmith.rundir.records.answers import Output

Rows = Sequence[Output]
Floats = NDArray[np.float64]

DRAWS = 10_000
CORPUS_DRAWS = 2_000  # where every draw calls a function of rows twice
_CHUNK = 4_000_000  # weights in memory at once: 32 MB


@dataclass(frozen=True)
class Imagined:
    """Rows that stand in every draw for what few rows cannot show.

    Attributes:
        counts_APK: what each adds to the sums of each arm.
        weight_P: how many rows each is, on average; a draw takes a gamma variate of that mean.
    """

    counts_APK: Floats
    weight_P: Floats


@dataclass(frozen=True)
class SumStatistic:
    """A figure over rows that follows from sums over rows; callable like any other corpus metric.

    Attributes:
        counts: rows -> what is summed, shape (N, K).
        value: sums of shape (..., K) -> figures of shape (...).
        imagined: rows and a number of arms -> what every draw holds beside them; None where draws of rows show all.
    """

    counts: Callable[[Rows], Floats]
    value: Callable[[Floats], Floats]
    imagined: Callable[[Rows, int], Imagined] | None = None

    def __call__(self, rows: Rows) -> float:
        """The figure of these rows."""
        return float(self.value(self.counts(rows).sum(axis=0)))


Statistic = SumStatistic | Callable[[Rows], float]

MEAN = SumStatistic(
    lambda rows: np.array([[row.score, 1.0] for row in rows], dtype=np.float64), lambda sums: sums[..., 0] / sums[..., 1]
)


def units(groups: Sequence[str] | None, n: int) -> NDArray[np.int64]:
    """The unit of each row, 0 to U - 1: its group's number, or its own without groups; shape (n,)."""
    if groups is None:
        return np.arange(n)
    return np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def per_unit(values_N: Floats, unit_N: NDArray[np.int64]) -> Floats:
    """Sums of ``values`` over the rows of each unit: shape (N, ...) -> (U, ...)."""
    sums_U = np.zeros((int(unit_N.max()) + 1, *values_N.shape[1:]))
    np.add.at(sums_U, unit_N, values_N)
    return sums_U


def weights(u: int, draws: int, seed: int = 0) -> Iterator[Floats]:
    """How often each of ``u`` units is in each draw with replacement, in chunks of shape (b, u) that add up to ``draws``."""
    rng = np.random.default_rng(seed)
    step = max(1, min(draws, _CHUNK // u))
    for start in range(0, draws, step):
        b = min(step, draws - start)
        places = rng.integers(0, u, size=(b, u)) + u * np.arange(b)[:, None]
        yield np.bincount(places.ravel(), minlength=b * u).reshape(b, u).astype(np.float64)


def bootstrap(statistic: Statistic, arms: Sequence[Rows], unit_N: NDArray[np.int64], seed: int = 0) -> Floats:
    """The figure of every arm in every draw of units, the same draws for all arms.

    Args:
        arms: A lists of N rows each, in one order.
        unit_N: ``units`` of the rows.

    Returns:
        Shape (B, A); B is 10,000 for a ``SumStatistic``, else 2,000.
    """
    u = int(unit_N.max()) + 1
    if isinstance(statistic, SumStatistic):
        sums_AUK = [per_unit(statistic.counts(rows), unit_N) for rows in arms]
        extra = None if statistic.imagined is None else statistic.imagined(arms[0], len(arms))
        chunks = (
            _figures(statistic, [weight_BU @ sums_UK for sums_UK in sums_AUK], extra, seed + number)
            for number, weight_BU in enumerate(weights(u, DRAWS, seed))
        )
        return np.concatenate(list(chunks))
    members = [np.flatnonzero(unit_N == unit) for unit in range(u)]
    rng = np.random.default_rng(seed)
    values_BA = np.empty((CORPUS_DRAWS, len(arms)))
    for draw in range(CORPUS_DRAWS):
        sample = np.concatenate([members[unit] for unit in rng.integers(0, u, size=u)])
        values_BA[draw] = [statistic([rows[i] for i in sample]) for rows in arms]
    return values_BA


def _figures(statistic: SumStatistic, sums_ABK: Sequence[Floats], extra: Imagined | None, seed: int) -> Floats:
    """The figure of every arm from the sums of some draws, shape (B, A); imagined rows weigh the same in all arms."""
    if extra is None:
        return np.stack([statistic.value(sums_BK) for sums_BK in sums_ABK], axis=1)
    size = (len(sums_ABK[0]), len(extra.weight_P))
    weight_BP = np.random.default_rng([seed, len(extra.weight_P)]).standard_gamma(extra.weight_P, size=size)
    pairs = zip(sums_ABK, extra.counts_APK, strict=True)
    return np.stack([statistic.value(sums_BK + weight_BP @ counts_PK) for sums_BK, counts_PK in pairs], axis=1)


def percentile_interval(values_B: Floats, u: int, tail: float) -> Interval:
    """Expanded percentile interval of a bootstrapped figure.

    Args:
        values_B: the figure in every draw.
        u: units that were drawn from, at least 2.
        tail: probability left out at each end (0.025 for a two-sided 95 % interval).
    """
    low, high = percentile_limits(values_B, u, tail)
    return Interval(float(low), float(high))


def percentile_limits(values_B: Floats, u: int, tail: float) -> tuple[Floats, Floats]:
    """The ends of ``percentile_interval`` where figures have further axes behind the draws."""
    reach = special.stdtrit(u - 1, tail) * np.sqrt(u / (u - 1))
    level = float(special.ndtr(reach))
    low, high = np.quantile(values_B, [level, 1.0 - level], axis=0)
    return low, high


def percentile_p(values_B: Floats, u: int) -> float:
    """Two-sided p of "the figure is 0": twice the tail at which the expanded percentile interval just reaches 0.

    Half of the draws that are exactly 0 lie on either side; no draw beyond 0 counts as half a draw.
    """
    below, draws = float((values_B < 0.0).sum() + 0.5 * (values_B == 0.0).sum()), len(values_B)
    share = min(max(min(below, draws - below), 0.5) / draws, 0.5)
    reach = special.ndtri(share) * np.sqrt((u - 1) / u)
    return min(1.0, 2.0 * float(special.stdtr(u - 1, reach)))
