"""Answers that a regular expression finds in a text, under a time limit.

What the pattern's last match holds in the answer must equal what it holds in the reference, on the ladder of ``text.py``: its
group named ``answer`` where there is one (``#### (?P<answer>.+)`` reads answers of GSM8K), else all of the match. Refused: a
pattern that need only be found, by which any number is right where the reference is 42. A reference in which it finds nothing,
or a blank, cannot be scored.

Matching can take time exponential in the text. ``re`` cannot be interrupted, so the ``regex`` package is used, which
stops after a second; such a row scores 0 and says ``timed_out``. Refused: a thread, which would go on for ever.
"""

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.text import normalise
from tunesmith.recipe import Task

SECONDS = 1.0


def regular_expression(task: Task) -> Metric:
    """The metric of ``task.pattern``.

    Raises:
        RecipeError: not a regular expression.
    """
    assert task.pattern is not None  # the recipe sees to it
    return Metric(name="regex", score=Pattern(task.pattern).score, tie_break="score", binary=True)


class Pattern:
    """A compiled ``task.pattern``.

    Raises:
        RecipeError: not a regular expression.
    """

    def __init__(self, pattern: str):
        import regex

        try:
            self._pattern = regex.compile(pattern)
        except regex.error as error:
            raise RecipeError(f"task.pattern: {pattern!r} is not a regular expression: {error}", "try it in Python") from error

    def score(self, answer: str, reference: str) -> Score:
        """``score``: what the pattern finds equals what it finds in the reference; ``timed_out``.

        Raises:
            ValueError: the pattern finds nothing in the reference itself, or takes too long.
        """
        try:
            of_reference = self._last(reference)
        except TimeoutError as error:
            raise ValueError(f"task.pattern takes more than {SECONDS:.0f} s on {reference[:80]!r}") from error
        if of_reference is None or not of_reference.strip():
            raise ValueError(f"task.pattern finds nothing in {reference[:80]!r}")
        try:
            of_answer = self._last(answer)
        except TimeoutError:
            return {"score": 0.0, "timed_out": 1.0}
        right = of_answer is not None and normalise(of_answer) == normalise(of_reference)
        return {"score": float(right), "timed_out": 0.0}

    def holds(self, answer: str) -> bool:
        """Whether an answer holds the pattern, within the time limit."""
        try:
            return self._last(answer) is not None
        except TimeoutError:
            return False

    def _last(self, text: str) -> str | None:
        last, group = None, "answer" if "answer" in self._pattern.groupindex else 0
        for match in self._pattern.finditer(text, timeout=SECONDS):
            last = match.group(group) or ""
        return last
