"""What a metric is: figures for every row, and one number for an arm.

A row's headline is ``score``. For most metrics an arm's number is the mean of it. For two it is not: macro-F1 and BLEU
are functions of all rows together, and the mean of per-row values is another quantity. Those bring ``corpus``, which
the gate computes again on every bootstrap sample; both are sums over rows (``resample.SumStatistic``), which is fast.

``score`` NaN means unscored: a judge that gave no verdict. It is never counted as wrong; whoever pairs arms leaves such
rows out and says how many. Refused: a class hierarchy of metrics. A record of functions is all that callers need.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Score = dict[str, float]
Row = dict[str, Any]

HEADLINE = "score"


@dataclass(frozen=True)
class Metric:
    """One way to score.

    Attributes:
        name: the recipe's ``task.metric``.
        score: ``(answer, reference)`` -> figures of a row; ``score`` is the headline in 0..1 (NaN: unscored).
        corpus: headline of an arm where it is not the mean of ``score``: a function of the arm's rows, which hold
            ``output`` and ``reference``.
        tie_break: the figure that decides between prompts of equal headline.
        binary: whether every ``score`` is 0 or 1, so that McNemar's test applies to the rows.
    """

    name: str
    score: Callable[[str, str], Score]
    corpus: Callable[[list[Row]], float] | None
    tie_break: str
    binary: bool

    def fits(self, reference: str) -> bool:
        """Whether a reference scores 1 against itself (or the metric leaves it to a judge)."""
        try:
            value = self.score(reference, reference)[HEADLINE]
        except ValueError:
            return False
        return value == 1.0 or math.isnan(value)

    def headline(self, rows: list[Row]) -> float:
        """Headline of an arm: ``corpus``, or the mean of the rows' ``score``, over scored rows; NaN when there are none."""
        scored = [row for row in rows if not math.isnan(row[HEADLINE])]
        if not scored:
            return math.nan
        if self.corpus is not None:
            return self.corpus(scored)
        return math.fsum(row[HEADLINE] for row in scored) / len(scored)
