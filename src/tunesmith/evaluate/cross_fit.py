"""What a prompt that was chosen on dev is worth, by rows that did not choose it.

The best of ten prompts on 64 rows looks better than it is: it was lucky on these rows, or it would not be the best of them.
At a true 90 of 100 for all of seventeen, the winner shows 95. So dev is cut in two: what is best on one half is scored on the
other, and the other way round, and the figure is that of all the held-out answers together. It has no luck in it, and errs on
the low side by little: half of dev chooses a little worse than all of it.

**No answer is asked for it.** Successive halving leaves most prompts with the first rows alone, so a row is held out only
among the prompts that were asked it. Which ones those are was decided by rows of earlier rungs, and the choice among them sees
every answer up to the end of the row's rung, but those of its own half of the rung. Refused: choosing among the survivors for
all rows alike. They survived *because* of the first rows, and the figure is 2 points too high (17 equal prompts, 64 rows).

**Two halves, not ten folds.** The more the choosing parts overlap, the more often one lucky prompt wins them all, and the
figure spreads like a maximum again: with 8 folds a 95 % bound is wrong up to 14 % of the time, with 2 up to 10 %
(docs/LOG.md). Where few rows are wrong some of that is left with two, so the bound is a 96 % one; it was wrong 9.7 +- 0.8 % of
the time where it was worst (``benchmarks/advice_simulation.py``). The price is a choice on half the rows.

**Rows that belong together** are held out together, in all rungs. Which prompts were asked a row may still hang on a row of its
group in an earlier rung; that is not corrected.

Sources: cross-fitting, Chernozhukov et al. 2018 (double machine learning), section 3; the optimism of a chosen maximum, Cawley
and Talbot 2010.

Shape suffixes: N rows (of dev).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tunesmith.evaluate import resample, stats
from tunesmith.evaluate.compare import figure_with_interval
from tunesmith.evaluate.metrics import Metric
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evidence import CrossFit

HALVES = 2
BOUND = 0.04  # tail of the one-sided bound; at 0.05 it is wrong up to 10 % of the time

Answers = Sequence[Output]  # of one way to ask, to the first rows of dev


def cross_fit(
    ways: Sequence[Answers],
    rank: Callable[[Answers], tuple[float, ...]],
    metric: Metric,
    groups: Sequence[str] | None = None,
) -> CrossFit | None:
    """The figure of "the best of these prompts", chosen and scored on different rows.

    Args:
        ways: the answers of each way to ask; one that dropped out early has fewer, one at least has all. In an order that owes
            nothing to them, since the earlier of equals wins: listed by rank, 17 equal prompts at 90 of 100 seem to be at 93.
        rank: of some answers; larger is better.
        groups: group of each row, where rows belong together.

    Returns:
        None where there is no second row (or group) to score on, or no score.
    """
    unit_N = resample.units(groups, max(map(len, ways), default=0))
    parts = list(_parts(sorted({len(answers) for answers in ways}), unit_N))
    if not parts or not all(rest for _, _, rest in parts):
        return None
    held_out: dict[int, Output] = {}
    for mark, fold, rest in parts:
        alive = (answers for answers in ways if len(answers) >= mark)
        best = max(alive, key=lambda answers: rank([answers[row] for row in rest]))
        held_out |= {row: best[row] for row in fold}
    rows = [row for row in sorted(held_out) if held_out[row].score is not None]
    u = len(np.unique(unit_N[rows])) if rows else 0
    if u < 2:
        return None
    outputs, names = [held_out[row] for row in rows], groups and [groups[row] for row in rows]
    figure, (low, high) = figure_with_interval(outputs, metric, names)
    _, (bound, _) = figure_with_interval(outputs, metric, names, BOUND)
    right = int(figure * u + 1e-9)
    if u - right < stats.MIN_DISCORDANT_UNITS:  # where Wilson's promises more than it holds: all of 25 right are above 90
        bound = min(bound, stats.exact_low(right, u, BOUND))
    return CrossFit(score=figure, low=low, high=high, bound=bound, n=len(rows))


def _parts(marks: Sequence[int], unit_N: np.ndarray) -> Iterator[tuple[int, list[int], list[int]]]:
    """``(rows answered by the end of the rung, rows held out, rows to choose on)`` for each half of each rung.

    Args:
        marks: ends of the rungs, ascending.
    """
    start = 0
    for mark in marks:
        in_rung = np.unique(unit_N[start:mark])
        for half in range(HALVES):
            in_fold_N = np.isin(unit_N[:mark], in_rung[half::HALVES])
            fold, rest = np.flatnonzero(in_fold_N), np.flatnonzero(~in_fold_N)
            if (fold := fold[fold >= start]).size:
                yield mark, fold.tolist(), rest.tolist()
        start = mark
