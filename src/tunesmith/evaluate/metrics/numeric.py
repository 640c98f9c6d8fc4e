"""Numeric answers: the last number in the answer against the last number in the reference.

Models reason before they answer and the answer comes last (the convention of GSM8K's evaluations). Numbers are read as
decimals, never as binary floats, so that 0.1 equals 0.10 and large integers stay apart. Read are signs (the minus of
Unicode too), thousands in groups of three, decimals with a point, exponents, and plain fractions; ``1.234,56`` in the
continental style is not, and a reference in that style should be written anew.
"""

import re
from decimal import Decimal

from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.recipe import Task

_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3}(?!\d))?(?:/\d{1,18}(?![\d/]))?"
)


def number(task: Task) -> Metric:
    """The metric of ``task.tolerance``."""
    tolerance = task.tolerance
    return Metric(name="numeric", score=lambda a, r: numeric_score(a, r, tolerance), tie_break="has_number", binary=True)


def number_line(task: Task) -> str:
    """What an answer looks like."""
    return "End with the answer as a number."


def numeric_score(answer: str, reference: str, tolerance: float) -> Score:
    """``score``: both last numbers differ by at most ``tolerance``; ``has_number``: there is a number in the answer.

    Raises:
        ValueError: no number in the reference.
    """
    wanted = last_number(reference)
    if wanted is None:
        raise ValueError(f"{reference[:80]!r} holds no number")
    given = last_number(answer)
    right = given is not None and abs(given - wanted) <= Decimal(str(tolerance))
    return {"score": float(right), "has_number": float(given is not None)}


def last_number(text: str) -> Decimal | None:
    """The last number of a text, or None."""
    last = None
    for match in _NUMBER.finditer(text):
        number, _, divisor = match.group().replace(",", "").replace("−", "-").partition("/")
        if not divisor:
            last = Decimal(number)
        elif int(divisor):
            last = Decimal(number) / int(divisor)
    return last
