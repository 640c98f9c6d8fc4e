"""Numeric answers: the quantity that an answer gives against the one of its reference.

What is read as a quantity, and which of several is the answer, stands in ``quantities.py``. Numbers are exact fractions, never
binary floats: 0.1 is 0.10, and integers of thirty digits stay apart.

**Kinds stay apart**: a date is no number, and equals the same day in any spelling (a day and month that nobody can tell apart,
3/4/2024, equals its own spelling alone); so with times of day, ratios and ranges.

**Units** are compared where both sides name one (5 km is 5,000 m, and no 5 miles). Where one side alone does, the unit is what
the question asked for, and the numbers are compared as written.

**Percent**: 50 % is 0.5. Where one side alone has the sign it may also be what the question asked for, so 50 % is 50 too; but
only above 1, since a bare 0.5 beside 0.5 % is a factor of a hundred more often than a sign left out.

The tolerance is in the reference's unit (points beside a percent), and for numbers and ranges alone.
"""

from fractions import Fraction

from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.quantities import Quantity, last_quantity
from tunesmith.recipe import Task


def number(task: Task) -> Metric:
    """The metric of ``task.tolerance``."""
    tolerance = task.tolerance
    return Metric(name="numeric", score=lambda a, r: numeric_score(a, r, tolerance), tie_break="has_number", binary=True)


def number_line(task: Task) -> str:
    """What an answer looks like."""
    return "End with the answer as a number."


def numeric_score(answer: str, reference: str, tolerance: float) -> Score:
    """``score``: the quantities are equal within the tolerance; ``has_number``: there is one in the answer.

    Raises:
        ValueError: none in the reference.
    """
    of_reference = last_quantity(reference)
    if of_reference is None:
        raise ValueError(f"{reference[:80]!r} holds no number")
    of_answer = last_quantity(answer)
    right = of_answer is not None and agree(of_answer, of_reference, Fraction(str(tolerance)))
    return {"score": float(right), "has_number": float(of_answer is not None)}


def agree(answer: Quantity, reference: Quantity, tolerance: Fraction) -> bool:
    """Whether two quantities are the same within the tolerance."""
    if answer.kind != reference.kind or len(answer.values) != len(reference.values):
        return False
    if reference.kind not in ("number", "range"):
        return answer.values == reference.values
    pairs = zip(answer.values, reference.values, strict=True)
    return all(_near(a, b, answer, reference, tolerance) for a, b in pairs)


def _near(a: Fraction, b: Fraction, answer: Quantity, reference: Quantity, tolerance: Fraction) -> bool:
    ours, theirs = answer.unit, reference.unit
    if ours is not None and theirs is not None:
        if ours.dimension != theirs.dimension:
            return False
        a = (a * ours.factor + ours.zero - theirs.zero) / theirs.factor
    elif ours is not None and ours.dimension == "percent":
        share = a * ours.factor / 100
        return abs(share - b) <= tolerance or (abs(b) > 1 and abs(a - b) <= tolerance)
    elif theirs is not None and theirs.dimension == "percent":
        return abs(100 * a / theirs.factor - b) <= tolerance or (abs(a) > 1 and abs(a - b) <= tolerance)
    return abs(a - b) <= tolerance
