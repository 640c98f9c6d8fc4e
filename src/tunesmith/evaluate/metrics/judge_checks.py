"""What a judge is not asked: the deterministic checks of an answer that go before it.

Every row is unscored until ``evaluate/judge.py`` has compared its answer with the best prompt's; whether the answer passes the
checks is a figure at once. An answer that fails one loses to an answer that does not, without a question to the judge.
"""

from collections.abc import Callable

from tunesmith.evaluate.metrics.json_object import load_schema, meets_schema
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.pattern import Pattern
from tunesmith.recipe import Task

Check = Callable[[str], bool]


def judge(task: Task) -> Metric:
    """The metric of a task that a judge decides.

    Raises:
        RecipeError: a bad schema or pattern.
    """
    required = checks(task)

    def score(answer: str, reference: str) -> Score:
        if not all(check(reference) for check in required):
            raise ValueError(f"{reference[:80]!r} fails the checks of its own task")
        return {"score": None, "checks": float(all(check(answer) for check in required))}

    return Metric(name="judge", score=score, tie_break="checks", binary=False)


def checks(task: Task) -> list[Check]:
    """The checks of a task: the answer says something, and it meets schema and pattern where the recipe has them."""
    required: list[Check] = [lambda answer: bool(answer.strip())]
    if task.json_schema is not None:
        validator = load_schema(task.json_schema)
        required.append(lambda answer: meets_schema(answer, validator))
    if task.pattern is not None:
        required.append(Pattern(task.pattern).holds)
    return required
