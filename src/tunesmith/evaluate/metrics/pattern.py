"""Answers that must hold a regular expression, under a time limit.

Without a group named ``answer`` the pattern must be found in the answer. With it, the text of the group's last match is
the answer, and it must equal what the pattern finds in the reference (``#### (?P<answer>.+)`` reads answers of GSM8K).

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
        self._extracts = "answer" in self._pattern.groupindex

    def score(self, answer: str, reference: str) -> Score:
        """``score``: the pattern is found (and its group ``answer`` equals the reference's); ``timed_out``.

        Raises:
            ValueError: the reference itself does not hold the pattern, or takes too long.
        """
        try:
            wanted = self._last(reference)
        except TimeoutError as error:
            raise ValueError(f"task.pattern takes more than {SECONDS:.0f} s on {reference[:80]!r}") from error
        if wanted is None:
            raise ValueError(f"{reference[:80]!r} does not hold task.pattern")
        try:
            given = self._last(answer)
        except TimeoutError:
            return {"score": 0.0, "timed_out": 1.0}
        right = given is not None and (not self._extracts or normalise(given) == normalise(wanted))
        return {"score": float(right), "timed_out": 0.0}

    def holds(self, answer: str) -> bool:
        """Whether an answer holds the pattern, within the time limit."""
        try:
            return self._last(answer) is not None
        except TimeoutError:
            return False

    def _last(self, text: str) -> str | None:
        last = None
        for match in self._pattern.finditer(text, timeout=SECONDS):
            last = match.group("answer" if self._extracts else 0) or ""
        return last
