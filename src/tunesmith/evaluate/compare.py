"""Two arms on the same rows: the gain, and how sure it is.

Which method applies follows from the metric and the rows, and nothing is to be chosen:

    score of a row     rows           interval of the gain
    yes or no          on their own   Tango's score interval
    any other          on their own   paired bootstrap of rows
    any                in groups      paired bootstrap of groups
    a corpus figure    either         the same, the figure computed anew in every draw

The p beside it is the same statement read the other way: the level at which the interval just reaches zero. So it is below
0.05 exactly where the 95 % interval excludes zero. Refused: a better test beside the interval (McNemar's mid-p, a
permutation), which contradicts it in the close cases, where people look; and Holm's adjustment of the p alone, which
contradicts it in most tables. Every interval and p is that of one comparison by itself; what is decided over several prompts
is ``gate.py``'s business.

Groups are those of the split: ``data.group_by``, else the rows that ask the same. Copies are answered alike, so 100 questions
asked three times each are no 300 rows of evidence: taken for that, a model that gains nothing is deployed 13 times in 100.

A row that the metric left unscored (a judge that could not be read) has the score None. It is dropped from both arms and
counted; to count it as wrong would be to guess.

Shape suffixes: N rows (of the test part); here: U units, B draws, A arms.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tunesmith.errors import RunError
from tunesmith.evaluate import resample, stats
from tunesmith.evaluate.interval import Interval
from tunesmith.evaluate.metrics import Metric
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Comparison


def standard_error(comparison: Comparison) -> float:
    """Half the interval over the quantile of its level: 1.96 for 95 %."""
    return (comparison.high - comparison.low) / (2 * float(special.ndtri(1 - comparison.alpha / 2)))


def scores(outputs: Sequence[Output]) -> NDArray[np.float64]:
    """Headline scores of an arm's rows, NaN where unscored; shape (n,)."""
    return np.array([math.nan if output.score is None else output.score for output in outputs], dtype=np.float64)


def compare(arm: Sequence[Output], baseline: Sequence[Output], metric: Metric, groups: list[str] | None = None) -> Comparison:
    """Paired comparison of two arms.

    Args:
        groups: group of each row, where rows may belong together; where each is its own they change nothing.

    Raises:
        RunError: the arms were not asked the same rows, or too few of them can be compared.
    """
    if [output.id for output in arm] != [output.id for output in baseline]:
        raise RunError("two arms were scored on different rows", "run: tunesmith evaluate RUN")
    scored = np.flatnonzero(~np.isnan(scores(arm) - scores(baseline))).tolist()
    if not scored:
        raise RunError(f"none of {len(arm)} rows is scored in both arms", "look at the judge's answers in outputs.jsonl")
    ours, theirs = [arm[i] for i in scored], [baseline[i] for i in scored]
    a, b, n = scores(ours), scores(theirs), len(scored)
    won, lost = stats.discordant(a, b)
    unit_N = resample.units(groups and [groups[i] for i in scored], n)
    u = int(unit_N.max()) + 1
    yes_no = metric.binary and metric.corpus is None and u == n
    if yes_no:
        gain, p = float(a.mean() - b.mean()), stats.score_p(won, lost)
        interval = stats.score_interval(won, lost, n)
    else:
        _refuse_one(u, groups)
        statistic = metric.corpus or resample.MEAN
        values_BA = resample.bootstrap(statistic, [ours, theirs], unit_N)
        gain, gain_B = statistic(ours) - statistic(theirs), values_BA[:, 0] - values_BA[:, 1]
        interval = resample.percentile_interval(gain_B, u, stats.ALPHA / 2)
        difference_U = resample.per_unit(a - b, unit_N)
        interval = stats.never_inside_the_signs(interval, difference_U, stats.ALPHA / 2)
        interval = interval.hull(Interval(gain, gain))  # imagined rows may move it off the figure
        p = stats.never_below_the_signs(resample.percentile_p(gain_B, u), difference_U)
        p = max(p, stats.ALPHA) if interval.low <= 0.0 <= interval.high else p
    return Comparison(
        gain=gain,
        low=interval.low,
        high=interval.high,
        p=p,
        won=won,
        lost=lost,
        n=n,
        units=u,
        unscored=len(arm) - n,
        yes_no=yes_no,
    )


def unscored_share(c: Comparison) -> float:
    """Share of the rows that the comparison leaves out since one of both has no score."""
    return c.unscored / (c.n + c.unscored)


def gain_of_all_rows(c: Comparison) -> Interval:
    """The gain over all rows, had every row without a score been lost, and had it been won: scores lie in 0..1."""
    known, rows = c.gain * c.n, c.n + c.unscored
    return Interval((known - c.unscored) / rows, (known + c.unscored) / rows)


def figure_with_interval(
    outputs: Sequence[Output], metric: Metric, groups: Sequence[str] | None = None, tail: float = stats.ALPHA / 2
) -> tuple[float, Interval]:
    """An arm's headline figure over its scored rows, with its 95 % interval: Wilson's for yes/no rows, else bootstrapped.

    Where fewer than ten units are not all wrong (or not all right) the bootstrap has seen too little of the rest, and the
    interval is never inside Wilson's.

    Args:
        groups: group of each row, where rows belong together.
        tail: probability left out at each end.

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
        return right / n, stats.wilson(right, n, tail)
    _refuse_one(u, groups)
    statistic = metric.corpus or resample.MEAN
    figure = statistic(rows)
    interval = resample.percentile_interval(resample.bootstrap(statistic, [rows], unit_N)[:, 0], u, tail)
    interval = interval.hull(Interval(figure, figure))  # imagined rows may move it off the figure
    mean_U = resample.per_unit(scores(rows), unit_N) / np.bincount(unit_N)
    if min(int((mean_U > 0.0).sum()), int((mean_U < 1.0).sum())) < stats.MIN_DISCORDANT_UNITS:
        interval = interval.hull(stats.wilson(min(u, max(0, round(figure * u))), u, tail))
    return figure, Interval(max(0.0, interval.low), min(1.0, interval.high))


def _refuse_one(u: int, groups: Sequence[str] | None) -> None:
    if u < 2:
        what = "row" if groups is None else "group (of data.group_by, or of rows that ask the same)"
        raise RunError(f"the scored test rows are one {what}, and one alone has no interval", "raise data.test_fraction")
