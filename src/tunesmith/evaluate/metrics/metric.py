"""What a metric is: figures for every row, and one number for an arm.

A row's headline is ``score``. For most metrics an arm's number is the mean of it. For two it is not: macro-F1 and BLEU
are functions of all rows together, and the mean of per-row values is another quantity. Those bring ``corpus``, which
the gate computes again on every bootstrap sample; both are sums over rows (``resample.SumStatistic``), which is fast.

A ``score`` of None means unscored: a judge that gave no verdict. It is never counted as wrong; whoever pairs arms leaves
such rows out and says how many. Refused: a class hierarchy of metrics. A record of functions is all that callers need.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.calls import Calls

Score = Mapping[str, float | None]  # "score", and the metric's own figures

HEADLINE = "score"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to score.

    Attributes:
        name: the recipe's ``task.metric``.
        score: ``(answer, reference)`` -> figures of a row; ``score`` is the headline in 0..1 (None: unscored).
        corpus: headline of an arm where it is not the mean of ``score``: a function of the arm's outputs.
        tie_break: the figure that decides between prompts of equal headline.
        score_calls: the same of what an answer calls, where that is scored and not its text.
        of_all: figures of an arm beside the headline that are no means over rows (an error of calibration).
        binary: whether every ``score`` is 0 or 1, so that McNemar's test applies to the rows.
    """

    name: str
    score: Callable[[str, str], Score]
    tie_break: str
    binary: bool
    corpus: Callable[[Sequence[Output]], float] | None = None
    score_calls: Callable[[Calls, str], Score] | None = None
    of_all: Mapping[str, Callable[[Sequence[Output]], float | None]] = field(default_factory=dict)

    def fits(self, reference: str) -> bool:
        """Whether a reference scores 1 against itself (or the metric leaves it to a judge)."""
        try:
            value = self.score(reference, reference)[HEADLINE]
        except ValueError:
            return False
        return value is None or value == 1.0

    def headline(self, outputs: Sequence[Output]) -> float | None:
        """Headline of an arm: ``corpus``, or the mean of the rows' ``score``, over scored rows; None when there are none."""
        scored = [(output, output.score) for output in outputs if output.score is not None]
        if not scored:
            return None
        if self.corpus is not None:
            return self.corpus([output for output, _ in scored])
        return math.fsum(score for _, score in scored) / len(scored)
