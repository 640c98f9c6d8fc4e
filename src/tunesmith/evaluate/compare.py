"""Two arms on the same rows: the gain, how sure it is, and how many rows it would take.

Which method applies follows from the metric and the rows, and nothing is to be chosen:

    score of a row     rows        interval of the gain            p
    yes or no          on their own   Tango's score interval       McNemar's mid-p
    any other          on their own   paired bootstrap of rows     permutation
    any                in groups      paired bootstrap of groups   permutation of groups
    a corpus figure    either         the same, the figure computed anew in every draw

A row that the metric left unscored (a judge that could not be read) is NaN. It is dropped from both arms and counted; to
count it as wrong would be to guess.

Shape suffixes: N rows (of the test part); here: U units, B draws, A arms.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from tunesmith.errors import RunError
from tunesmith.evaluate import resample, stats
from tunesmith.evaluate.arms import Outputs
from tunesmith.evaluate.metrics import HEADLINE, Metric

_Z = float(scipy_stats.norm.ppf(1 - stats.ALPHA / 2))


@dataclass(frozen=True)
class Comparison:
    """An arm against another (the best prompt, most often), on the same rows.

    Attributes:
        gain: difference of the headline figures.
        low, high: 95 % interval of the gain.
        p: two-sided p of "no difference".
        won, lost: rows that score higher only here, and only there.
        detectable: smallest gain that these rows would find with 80 % power.
        n, units: rows compared; what was drawn again (groups, or the rows themselves).
        unscored: rows left out because one of the two has no score.
        yes_no: whether rows are right or wrong and on their own.
        p_holm: ``p`` adjusted for the number of arms compared (Holm); None outside of a verdict.
    """

    gain: float
    low: float
    high: float
    p: float
    won: int
    lost: int
    detectable: float
    n: int
    units: int
    unscored: int = 0
    yes_no: bool = True
    p_holm: float | None = None

    @property
    def standard_error(self) -> float:
        """Half the interval over 1.96."""
        return (self.high - self.low) / (2 * _Z)

    def needed(self, gain: float) -> int | None:
        """Rows of this kind that find ``gain`` with 80 % power; None for a gain of 0."""
        if gain <= 0.0:
            return None
        if self.yes_no:
            return stats.n_needed(gain, stats.discordant_share(self.won, self.lost, self.n))
        return math.ceil(self.n * (self.detectable / gain) ** 2)


def scores(outputs: Outputs) -> NDArray[np.float64]:
    """Headline scores of an arm's rows, NaN where unscored; shape (n,)."""
    return np.array([row[HEADLINE] for row in outputs], dtype=np.float64)


def compare(arm: Outputs, baseline: Outputs, metric: Metric, groups: list[str] | None = None) -> Comparison:
    """Paired comparison of two arms.

    Args:
        groups: group of each row, where rows belong together.

    Raises:
        RunError: the arms were not asked the same rows, or too few of them can be compared.
    """
    if [row["id"] for row in arm] != [row["id"] for row in baseline]:
        raise RunError("two arms were scored on different rows", "run: tunesmith evaluate RUN")
    scored = np.flatnonzero(~np.isnan(scores(arm) - scores(baseline))).tolist()
    if not scored:
        raise RunError(f"none of {len(arm)} rows is scored in both arms", "look at the judge's answers in outputs.jsonl")
    ours, theirs = [arm[i] for i in scored], [baseline[i] for i in scored]
    a, b, n, unscored = scores(ours), scores(theirs), len(scored), len(arm) - len(scored)
    won, lost = stats.discordant(a, b)
    unit_N = resample.units(groups and [groups[i] for i in scored], n)
    u = int(unit_N.max()) + 1
    if metric.binary and metric.corpus is None and u == n:
        low, high = stats.score_interval(won, lost, n)
        detectable = stats.minimum_detectable_effect(won, lost, n)
        p = stats.mcnemar_midp(won, lost)
        return Comparison(float(a.mean() - b.mean()), low, high, p, won, lost, detectable, n, u, unscored)
    _refuse_one(u, groups)
    statistic = metric.corpus or resample.MEAN
    values_BA = resample.bootstrap(statistic, [ours, theirs], unit_N)
    low, high = resample.percentile_interval(values_BA[:, 0] - values_BA[:, 1], u, stats.ALPHA / 2)
    low, high = stats.never_inside_the_signs(float(low), float(high), resample.per_unit(a - b, unit_N), stats.ALPHA / 2)
    detectable = min(1.0, stats.spread_of_power() * (high - low) / (2 * _Z))
    gain = statistic(ours) - statistic(theirs)
    p = resample.permutation_p(statistic, ours, theirs, unit_N)
    return Comparison(gain, low, high, p, won, lost, detectable, n, u, unscored, yes_no=False)


def figure_with_interval(outputs: Outputs, metric: Metric, groups: list[str] | None = None) -> tuple[float, float, float]:
    """An arm's headline figure over its scored rows, with its 95 % interval: Wilson's for yes/no rows, else bootstrapped.

    Where fewer than ten units are not all wrong (or not all right) the bootstrap has seen too little of the rest, and the
    interval is never inside Wilson's.

    Raises:
        RunError: no row is scored, or one alone.
    """
    scored = np.flatnonzero(~np.isnan(scores(outputs))).tolist()
    if not scored:
        raise RunError(f"none of {len(outputs)} rows is scored", "look at the judge's answers in outputs.jsonl")
    rows, n = [outputs[i] for i in scored], len(scored)
    unit_N = resample.units(groups and [groups[i] for i in scored], n)
    u = int(unit_N.max()) + 1
    if metric.binary and metric.corpus is None and u == n:
        right = int(scores(rows).sum())
        return right / n, *stats.wilson(right, n)
    _refuse_one(u, groups)
    statistic = metric.corpus or resample.MEAN
    figure = statistic(rows)
    low, high = resample.percentile_interval(resample.bootstrap(statistic, [rows], unit_N)[:, 0], u, stats.ALPHA / 2)
    mean_U = resample.per_unit(scores(rows), unit_N) / np.bincount(unit_N)
    if min(int((mean_U > 0.0).sum()), int((mean_U < 1.0).sum())) < stats.MIN_DISCORDANT_UNITS:
        wilson_low, wilson_high = stats.wilson(min(u, max(0, round(figure * u))), u)
        low, high = min(low, wilson_low), max(high, wilson_high)
    return figure, max(0.0, float(low)), min(1.0, float(high))


def _refuse_one(u: int, groups: list[str] | None) -> None:
    if u < 2:
        what = "row" if groups is None else "group of data.group_by"
        raise RunError(f"the scored test rows are one {what}, and one alone has no interval", "raise data.test_fraction")
