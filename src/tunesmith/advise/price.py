"""When a tuned model pays for itself: the prompt tokens that every call saves, against the hours that trained it.

A tuned model is asked with the short prompt, so a call saves the tokens of the instruction and of the demonstrations. What
is left out on purpose: the price of hosting (the same machine serves the prompted and the tuned model here; whoever leaves
a hosted endpoint for a machine of his own must add its rent), and the hours of people, which are the larger cost of most
tuning. Both make tuning dearer, so a break-even that fails here fails all the more outside.
"""

from dataclasses import dataclass

DAYS_A_MONTH = 30.0


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """When the saving has paid for the training.

    Attributes:
        a_month: money that the shorter prompt saves in a month.
        cost: money that the training takes.
        requests: calls until the cost is saved; infinite where a call saves nothing.
        days: the same in days of this traffic.
    """

    a_month: float
    cost: float
    requests: float
    days: float


def break_even(calls_per_month: float, per_million: float, per_hour: float, tokens_saved: float, hours: float) -> BreakEven:
    """Requests and days until the prompt tokens saved pay for the training.

    Args:
        per_million, per_hour: prices of a million prompt tokens and of an hour of training, in one currency.
        tokens_saved: prompt tokens that a call does without; below zero counts as none.
    """
    saved = max(0.0, tokens_saved) * per_million / 1e6
    cost = per_hour * hours
    requests = cost / saved if saved else float("inf") if cost else 0.0
    days = requests / calls_per_month * DAYS_A_MONTH if calls_per_month else float("inf") if requests else 0.0
    return BreakEven(a_month=saved * calls_per_month, cost=cost, requests=requests, days=days)
