"""Which arms are tuned models, and how certain each of several candidates has to be.

Several candidates at once each have to beat every prompt. The chance that some candidate passes that is no better grows with
their number, so they share what one may spend, by Holm's steps (1979): the surest is asked for 1 / k of it, and as long as the
ones before have passed, the next is asked for 1 / (k - 1) and so on. From the first that fails on all stay at its level. How
sure one is, the p of its hardest comparison says; one that is behind any prompt is the least sure of all.

**The file of the chosen one** is another model than was chosen: its rounding may have cost what it gained. It is asked for
1 / k, whatever step its model stood on (``share_of_one``). However the choice depends on the test part, each of k files that is
no better passes in a k-th of the cases, so that one of them passes in no more than the whole (Bonferroni). Holm's larger steps
would not hold: they are earned by models that are better, whose files need not be.

Refused: 1 / k for every model, which asks the same of the surest and more of the others; choosing the best on dev and testing
that one alone, which spends nothing and answers nothing about the others, for whose sake they were brought; a file of each,
which takes an export, and the hours of llama.cpp on the test part, for those that nobody will deploy.
"""

from collections.abc import Callable, Collection, Mapping

from tunesmith.errors import RunError
from tunesmith.recipe.tuned import TUNED_OF

TUNED_ARMS = ("tuned", "tuned_retrieval", "deployed")  # and tuned:NAME, where several are brought


def is_tuned(arm: str) -> bool:
    """Whether a tuned model answers in an arm."""
    return arm in TUNED_ARMS or arm.startswith(TUNED_OF)


def candidates_of(outputs: Collection[str]) -> tuple[str, ...]:
    """The arms of which one would be deployed: one, or all that were brought.

    Raises:
        RunError: no tuned arm was scored.
    """
    if several := tuple(name for name in outputs if name.startswith(TUNED_OF)):
        return several
    candidate = "deployed" if "deployed" in outputs else "tuned"
    if candidate not in outputs:
        raise RunError("neither the deployed nor the tuned arm was scored", "run: tunesmith evaluate RUN")
    return (candidate,)


def share_of_one(alpha: float, candidates: int) -> float:
    """The level of a file whose model was chosen from several by their answers to the same rows."""
    return alpha / candidates


def holm(hardest: Mapping[str, float], alpha: float, passes: Callable[[str, float], bool]) -> dict[str, float]:
    """The level of each candidate.

    Args:
        hardest: two-sided p of each one's hardest comparison; above 1 for one that is behind.
        alpha: what all of them share.
        passes: whether a candidate is better than every prompt at a level.

    >>> holm({"a": 0.001, "b": 0.02, "c": 0.04}, 0.05, lambda name, level: name == "a")
    {'a': 0.016666666666666666, 'b': 0.025, 'c': 0.025}
    """
    levels: dict[str, float] = {}
    left = len(hardest)
    for name in sorted(hardest, key=lambda one: hardest[one]):
        levels[name] = alpha / left
        left -= left > 1 and passes(name, levels[name])
    return levels
