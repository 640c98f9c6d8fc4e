"""The learning curve: what would more data of this kind buy?

The run's model is trained on nested shares of the train part and scored on dev. The error of a model as a function of
its n training rows follows a power law that levels off,

    error(n) = a + b (n / N)^-c        0 <= a, 0 <= b, 0.05 <= c <= 2,

with N all train rows: a is the error that no amount of such data removes, a + b the error now. Given c the best a and b
are a least-squares problem of two unknowns with a closed form, so c is searched on a grid (variable projection), nothing
depends on where an optimiser starts, and all bootstrap draws of the dev rows are fitted at once: 50 ms for 2,000.
``scipy.optimize.curve_fit`` was refused: it finds the same law and takes 10 ms for each draw.

Dev rows are drawn jointly for all shares, because the same rows were asked each time. Drawing rows says nothing of the
luck of one training run; where several seeds were trained, their standard deviation is added to every point of a draw.
An extrapolation stays one: the intervals assume that the curve goes on as a power law and that new rows resemble the
old. So the verdict is "pays" or "does not pay" only when a whole interval lies on one side of ``min_gain``.

Sources: power laws of error over data, Hestness et al. 2017 (arXiv 1712.00409); their merits and failures, Viering and
Loog 2023 (arXiv 2103.10948); variable projection, Golub and Pereyra 1973; percentile bootstrap, Efron 1979.

Shape suffixes here: K shares of the train part, M dev rows, B draws, G values of c, T points on the axis of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
SLOW_DRAWS = 300  # of a metric over the whole set of rows, which is computed anew for every draw
TIMES = (2, 4)  # how much more data the curve is carried on to; beyond that a power law of four points is a guess
EXPONENTS = np.geomspace(0.05, 2.0, 160)
LEVEL = (0.025, 0.975)
MIN_DISCORDANT_UNITS = 5  # right dev rows below which a flat curve may be one that has not begun to rise

Floats = NDArray[np.float64]
Verdict = Literal["more data pays", "more data does not pay", "cannot tell"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        rows: train rows that it belongs to.
        value, low, high: score, or gain of a score, in 0..1.
    """

    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A fitted learning curve.

    Attributes:
        a, b, c: the law's constants at the point estimate.
        points: what was measured on dev, an estimate a share.
        line: the fitted score from the smallest share to four times the data, for a picture.
        gains: predicted gain over the score now, at twice and at four times the rows.
        dev_rows: rows that every share was scored on.
        verdict: what follows for ``min_gain``.
        told: the same as a sentence with its numbers.
    """

    a: float
    b: float
    c: float
    points: list[Estimate]
    line: list[Estimate]
    gains: list[Estimate]
    dev_rows: int
    verdict: Verdict
    told: str


def bootstrap(scores_KM: Floats, corpus: Callable[[int, NDArray[np.int64]], float] | None = None) -> tuple[Floats, Floats]:
    """Scores of each share, and the same for redrawn dev rows.

    Args:
        scores_KM: score of every dev row under the model of every share, in 0..1.
        corpus: where the headline is no mean over rows: the figure of share k over the dev rows with these indices.

    Returns:
        ``scores_K`` and ``draws_BK``.
    """
    shares, rows = scores_KM.shape
    rng = np.random.default_rng(0)
    if corpus is None:
        # How often each row is drawn is all that a mean needs: one matrix product instead of B x M x K reads.
        counts_BM = rng.multinomial(rows, np.full(rows, 1.0 / rows), size=DRAWS)
        return scores_KM.mean(axis=1), _widened(counts_BM @ scores_KM.T / rows, rows)
    draws_BM = rng.integers(0, rows, size=(SLOW_DRAWS, rows))
    every_M = np.arange(rows)
    scores_K = np.array([corpus(k, every_M) for k in range(shares)])
    return scores_K, _widened(np.array([[corpus(k, draw_M) for k in range(shares)] for draw_M in draws_BM]), rows)


def _widened(draws_BK: Floats, rows: int) -> Floats:
    """The draws with one more row each, of which nothing is known: rows that all agree are no proof that all rows do."""
    unknown_BK = np.random.default_rng(2).uniform(size=draws_BK.shape)
    return (rows * draws_BK + unknown_BK) / (rows + 1)


def fit_law(share_K: Floats, error_BK: Floats) -> tuple[Floats, Floats, Floats]:
    """Least-squares constants of ``error = a + b share^-c`` for many sets of errors at once.

    Args:
        share_K: n / N of each point, above 0.
        error_BK: errors, a set a row.

    Returns:
        ``a_B``, ``b_B``, ``c_B`` within the bounds of the module's law.
    """
    power_GK = share_K[None, :] ** -EXPONENTS[:, None]
    mean_G, mean_B = power_GK.mean(axis=1), error_BK.mean(axis=1)
    centred_GK = power_GK - mean_G[:, None]
    slope_BG = (error_BK @ centred_GK.T) / (centred_GK**2).sum(axis=1)
    floor_BG = mean_B[:, None] - slope_BG * mean_G
    # Two unknowns, both at least zero: the optimum is free, or lies on one of the two edges.
    through_zero_BG = np.maximum((error_BK @ power_GK.T) / (power_GK**2).sum(axis=1), 0.0)
    slope_BG = np.where(floor_BG < 0.0, through_zero_BG, slope_BG)
    floor_BG = np.where(floor_BG < 0.0, 0.0, floor_BG)
    floor_BG = np.where(slope_BG < 0.0, mean_B[:, None], floor_BG)
    slope_BG = np.maximum(slope_BG, 0.0)
    loss_BG = np.stack(
        [(((floor_BG[:, [g]] + slope_BG[:, [g]] * power_GK[g]) - error_BK) ** 2).sum(axis=1) for g in range(len(EXPONENTS))],
        axis=1,
    )
    best_B = loss_BG.argmin(axis=1)
    every_B = np.arange(len(error_BK))
    return floor_BG[every_B, best_B], slope_BG[every_B, best_B], EXPONENTS[best_B]


def fit_curve(
    rows_K: list[int], scores_K: Floats, draws_BK: Floats, dev_rows: int, min_gain: float, seed_sd: float | None = None
) -> Curve:
    """Fit the law to measured scores and say what more data would buy.

    Args:
        rows_K: train rows of each share, ascending, at least three of them.
        scores_K, draws_BK: as ``bootstrap`` returns them.
        dev_rows: rows that were scored.
        min_gain: smallest gain that is worth it.
        seed_sd: standard deviation of the score over training seeds, where it was measured.
    """
    most = rows_K[-1]
    share_K = np.array(rows_K) / most
    if seed_sd is not None:
        draws_BK = draws_BK + np.random.default_rng(1).normal(0.0, seed_sd, draws_BK.shape)
    line_T = np.unique(np.geomspace(rows_K[0], TIMES[-1] * most, 40).round().astype(int))
    a_B, b_B, c_B = fit_law(share_K, 1.0 - draws_BK)
    a_1, b_1, c_1 = fit_law(share_K, 1.0 - scores_K[None, :])

    def score(rows: int) -> tuple[float, Floats]:
        x = rows / most
        return _score(a_1, b_1, c_1, x).item(), _score(a_B, b_B, c_B, x)

    def gain(rows: int) -> Estimate:
        (then, then_B), (now, now_B) = score(rows), score(most)
        return _estimate(rows, then - now, then_B - now_B)

    points = [_estimate(n, float(s), draws_BK[:, k]) for k, (n, s) in enumerate(zip(rows_K, scores_K, strict=True))]
    line = [_estimate(n, *score(n)) for n in line_T.tolist()]
    gains = [gain(times * most) for times in TIMES]
    falls = _fall(rows_K, scores_K, draws_BK)
    if falls is None and scores_K[-1] * dev_rows < MIN_DISCORDANT_UNITS:
        verdict, told = (
            "cannot tell",
            f"{scores_K[-1] * dev_rows:.0f} of {dev_rows:,} dev rows are right: too few to see a curve",
        )
    else:
        verdict, told = _verdict(gains, falls, min_gain)
    return Curve(a_1.item(), b_1.item(), c_1.item(), points, line, gains, dev_rows, verdict, told)


def _score(a_B: Floats, b_B: Floats, c_B: Floats, share: float) -> Floats:
    return np.clip(1.0 - a_B - b_B * share**-c_B, 0.0, 1.0)


def _estimate(rows: int, value: float, drawn_B: Floats) -> Estimate:
    low, high = np.quantile(drawn_B, LEVEL).tolist()
    return Estimate(rows, value, low, high)


def _fall(rows_K: list[int], scores_K: Floats, draws_BK: Floats) -> tuple[int, int] | None:
    """Two neighbouring points between which the score falls for certain, which no law of this form follows."""
    for k in range(len(rows_K) - 1):
        if scores_K[k + 1] < scores_K[k] and np.quantile(draws_BK[:, k + 1] - draws_BK[:, k], LEVEL[1]) < 0.0:
            return rows_K[k], rows_K[k + 1]
    return None


def _verdict(gains: list[Estimate], falls: tuple[int, int] | None, min_gain: float) -> tuple[Verdict, str]:
    twice, most = gains[0], gains[-1]
    worth = f"the {100 * min_gain:.1f} points that are worth it"
    if falls is not None:
        return "cannot tell", (
            f"the score falls between {falls[0]:,} and {falls[1]:,} rows, which no curve of more data explains; "
            "look at the rows and the learning rate"
        )
    for gain in gains:
        if gain.low >= min_gain > 0.0 or gain.low > 0.0 == min_gain:
            return "more data pays", f"{gain.rows:,} rows would buy {_points(gain)}, at least {worth}"
    if most.high < min_gain or most.high <= 0.0:
        return "more data does not pay", f"even {most.rows:,} rows would buy {_points(most)}, less than {worth}"
    return "cannot tell", (
        f"{twice.rows:,} rows would buy {_points(twice)}, {most.rows:,} rows {_points(most)}: more or less than {worth}; "
        "more dev rows or more shares would narrow it"
    )


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
