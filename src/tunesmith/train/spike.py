"""A loss that jumps up and stays there: seen at the next dev loss, undone, and gone on from at half the rate.

A rate that is right for a thousand steps may be too much for one; small steps of few rows are where it happens, and a model
that has collapsed does not come back (25 of 100 right in place of 93 in one published run). A hard step is no spike, nor is
over-fitting, in which some train losses are hard steps. It takes four things together:

- a train loss above twice the median of the fifty steps before;
- above the best dev loss, too, which the train losses of an over-fitted model rarely are;
- train losses after it, up to the dev loss, whose median is half as high again as that of before;
- a dev loss a tenth above the best.

What is undone is everything since the best checkpoint, metrics too; events say what happened. All of it is decided by what the
table and the checkpoint hold, so a killed run decides the same. Twice at most: a run that spikes a third time is told so, and
goes on, since its best checkpoint is kept anyway. A loss that is not finite is no spike: it ends the run, as everywhere.

Refused: clipping harder (it is clipped already); a dev loss at each hard step, which costs one there.
"""

import statistics
from collections.abc import Sequence

from tunesmith.rundir.records.training import DevLoss, Spike

JUMP, LASTING = 2.0, 1.5  # over the median of the train losses before: of the jump, of what follows it
WORSE = 1.1  # over the best dev loss
WINDOW, FEWEST = 50, 5  # steps of that median
MOST = 2  # times that a run goes back
SLOWER = 0.5


def find_spike(losses: Sequence[float], since: int, dev_loss: float, best: DevLoss, rate: float) -> Spike | None:
    """A spike between two dev losses.

    Args:
        losses: train loss of every step so far.
        since: steps done at the dev loss before.
        dev_loss: the new one.
        best: the lowest before it.
        rate: that the run is at.
    """
    if dev_loss <= WORSE * best.dev_loss:
        return None
    for step in range(max(since, FEWEST), len(losses)):
        usual = statistics.median(losses[max(0, step - WINDOW) : step])
        after = losses[step + 1 :]
        is_lasting = not after or statistics.median(after) > LASTING * usual
        if is_lasting and losses[step] > max(JUMP * usual, best.dev_loss):
            return Spike(step=step + 1, loss=losses[step], dev_loss=dev_loss, back_to=best.step, learning_rate=SLOWER * rate)
    return None
