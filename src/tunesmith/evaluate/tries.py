"""The price of another try: how certain a gain has to be when other adapters were scored on these test rows before.

Every adapter that is no better than the prompt has its own 2.5 % chance to look better, so whoever tries until one passes will
pass. The cure is to spend a fixed budget: the first adapter on a test part may err in 2.5 % of cases, the i-th one in
2.5 % / (i (i - 1)). Those of all later ones, however many come, add up to another 2.5 %, since the sum of 1 / (i (i - 1)) from
2 on is 1. So by Boole's inequality a whole history of tries deploys an adapter that is no better at most 5 % of the time,
whatever the adapters have in common and however each was chosen after the scores of those before it; and the second adapter is
not asked for more than a first one of a pair would be by Bonferroni.

**A place never changes**: what is tried later takes nothing back, so a verdict of yesterday stands, and no total has to be
known beforehand. Refused: Bonferroni or Sidak over the adapters tried so far (the i-th at 2.5 % / i: those add up without
bound, and every old verdict would have to be taken back); a correction for the prompts (more of them only raise what must be
beaten).

Cost: the 10th adapter on the same rows needs 2.3 times the rows of the first. Fresh test rows start anew.

Sources: Bonferroni 1936; Foster and Stine 2008 (alpha-investing), section 2, alpha-spending; Dwork et al. 2015, "The reusable
holdout".
"""

import dataclasses

from scipy import special

from tunesmith.evaluate import stats
from tunesmith.rundir.records.evaluation import Comparison


def alpha_of(place: int) -> float:
    """Two-sided level of the i-th adapter on a test part; half of it is the chance to deploy one that is no better.

    >>> [round(stats.ALPHA / alpha_of(place)) for place in (1, 2, 3, 10)]
    [1, 2, 6, 90]
    """
    return stats.ALPHA if place == 1 else stats.ALPHA / (place * (place - 1))


def widened(c: Comparison, alpha: float) -> Comparison:
    """A comparison with the interval of a smaller level; its p is multiplied, so that both still say the same.

    Right-or-wrong rows get Tango's interval of that level. Others are stretched as Student's t is, because 10,000 draws do not
    show a tail of 1 in 10,000.
    """
    if alpha == c.alpha:
        return c
    factor = c.alpha / alpha
    if c.yes_no:
        low, high = stats.score_interval(c.won, c.lost, c.n, alpha / 2)
        return dataclasses.replace(c, low=low, high=high, p=min(1.0, factor * c.p), alpha=alpha)
    freedom = c.units - 1
    reach = float(special.stdtrit(freedom, 1 - c.alpha / 2))
    stretch = float(special.stdtrit(freedom, 1 - alpha / 2)) / reach
    side = c.gain - c.low if c.gain > 0.0 else c.high - c.gain
    p = 2.0 * float(special.stdtr(freedom, -reach * abs(c.gain) / side)) if side > 0.0 else c.p
    return dataclasses.replace(
        c,
        low=max(-1.0, c.gain - stretch * (c.gain - c.low)),
        high=min(1.0, c.gain + stretch * (c.high - c.gain)),
        p=max(c.p, min(1.0, factor * p)),  # no p is below what the draws can show
        alpha=alpha,
    )
