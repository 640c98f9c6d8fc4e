"""A user's own metric: a Python function in a file, ``task.function: scoring.py:name``.

The function gets ``(answer, reference)`` and returns a score in 0..1, or a dict of figures with ``score`` in it. The
file is run when the metric is made, as any Python that its owner wrote; it is not confined. What the function raises is
passed on with the place in the file and the answer that it was given: a row that cannot be scored is no wrong answer.
"""

import importlib.util
import math
import numbers
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.recipe import Task


def user_function_metric(task: Task) -> Metric:
    """The metric of ``task.function``, ``file.py:name``.

    Raises:
        RecipeError: no such file or function, the file or the function raised, or what it returned is no score.
    """
    location = task.function
    assert location is not None  # the recipe sees to it
    file, _, name = location.rpartition(":")
    function = _load(Path(file)).__dict__.get(name)
    if not callable(function):
        raise RecipeError(f"task.function: {file} has no function {name}", f"write: def {name}(answer, reference): ...")

    def score(answer: str, reference: str) -> Score:
        with _Named(Path(file), f"on the answer {answer[:80]!r}"):
            returned = function(answer, reference)
        return _checked(location, returned)

    return Metric(name="python", score=score, tie_break="score", binary=False)


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tunesmith_user_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise RecipeError(f"task.function: {file} is no Python file", "write file.py:name, relative to the recipe")
    module = importlib.util.module_from_spec(spec)
    with _Named(file, "when it was loaded"):
        spec.loader.exec_module(module)
    return module


def _checked(location: str, returned: Any) -> Score:
    figures = returned if isinstance(returned, dict) else {"score": returned}
    for name, value in figures.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise RecipeError(f"task.function: {location} returned {value!r:.80} as {name}", "return a number")
    if not 0.0 <= figures.get("score", -1.0) <= 1.0:
        what = f"the score {figures['score']!r}" if "score" in figures else "no score"
        raise RecipeError(f"task.function: {location} returned {what}", "return a number in 0..1, or a dict with score in it")
    return {name: float(value) for name, value in figures.items()}


class _Named:
    """Passes on what a user's code raises as our error, with the place in the user's file."""

    def __init__(self, file: Path, when: str):
        self.file, self.when = file, when

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == str(self.file)]
            where = f"{self.file}:{lines[-1]}" if lines else str(self.file)
            raise RecipeError(
                f"task.function: {where} raised {type(error).__name__}: {error} {self.when}", "mend the function"
            ) from error
