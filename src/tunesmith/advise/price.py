"""When a tuned model pays for itself: what every call saves, against the hours that trained it and what hosting it adds.

A tuned model is asked with the short prompt, so a call saves the tokens of the instruction and of the demonstrations, and the
time to read them. **A call is priced once**: by its tokens where a price of tokens is given (prompt tokens, and answer tokens
where those have a price), else by the seconds it takes of a machine that costs so much an hour. Adding the two would count
the same work twice.

**Prompt caching** takes most of the saving away: the instruction and the examples that tuning does without are the same in
every call, which is what providers cache. With ``advise.price_per_million_cached_tokens`` every saved prompt token has that
price. That is the dearest reading for tuning (examples drawn anew for each question are not cached), and is meant to be. In
llama.cpp the time of both sides is measured with the cache that its server has by default.

**Hosting** is what serving a model of one's own adds to a month (``advise.hosting_per_month``; nothing where one machine
serves the prompted and the tuned model alike). It is taken off the month's saving, so below a number of calls nothing ever
pays back. Left out on purpose: the hours of people, the larger cost of most tuning. A break-even that fails here fails all
the more outside.

Example: 10,000 calls a month that save 500 prompt tokens at 0.10 a million save 0.50 a month; cached at 0.01, 0.05; with
hosting for 20, nothing.
"""

import math
from dataclasses import dataclass

DAYS_A_MONTH = 30.0
PAYBACK_DAYS = 180.0  # open base models are replaced about twice a year, and an adapter fits one of them alone


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """When the saving has paid for the training.

    Attributes:
        a_month: money that a month saves, hosting taken off; below zero where hosting costs more.
        cost: money that the training takes.
        requests: calls until the cost is saved; infinite where a month saves nothing.
        days: the same in days of this traffic.
    """

    a_month: float
    cost: float
    requests: float
    days: float


def by_tokens(
    prompt_tokens: float, per_million: float, cached: float | None = None, new_tokens: float = 0.0, output: float | None = None
) -> float:
    """Money that a call saves with so many fewer prompt and answer tokens.

    Args:
        per_million, cached, output: prices of a million prompt tokens, of cached ones, of answer tokens; None where there is no
            such price: prompt tokens are then priced in full, answer tokens not at all.

    >>> by_tokens(500, 0.10) * 10_000
    0.5
    """
    return (prompt_tokens * (per_million if cached is None else cached) + new_tokens * (output or 0.0)) / 1e6


def by_time(seconds: float, per_hour: float) -> float:
    """Money that a call saves which takes so much less of a machine."""
    return seconds / 3600.0 * per_hour


def break_even(calls_per_month: float, a_call: float, cost: float, hosting: float = 0.0) -> BreakEven:
    """Calls and days until the saving has paid for the training.

    Args:
        a_call: money that a call saves.
        cost: money that the training takes.
        hosting: money that a month of hosting adds.
    """
    a_month = calls_per_month * a_call - hosting
    days = cost / a_month * DAYS_A_MONTH if a_month > 0.0 else math.inf
    requests = days / DAYS_A_MONTH * calls_per_month if a_month > 0.0 else math.inf
    return BreakEven(a_month=a_month, cost=cost, requests=requests, days=days)
