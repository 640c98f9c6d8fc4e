"""Classification with probabilities: is the likeliest label right, does its probability mean what it says, and how much of the
traffic can a model take that must be right so often.

The answer of an arm is the distribution over the labels (``evaluate/choose.py``): nothing is written, so no answer is invalid
and no prompt loses by its form. The headline is accuracy, a yes or no for each row. Beside it:

- ``p_right``: mean probability of the right label; ``brier``: mean squared distance from "1 for it, 0 for the rest" (0 is
  perfect, 2 certain and wrong; Brier 1950, over all labels).
- ``macro_f1``: of the likeliest labels (``labels.py``).
- ``ece``: expected calibration error, the mean distance between how sure the model was and how often it was right, over ten
  bins of as many rows each, fewer below 100 rows. Bins of equal width, the usual choice, put nearly all rows of a tuned model
  in the last one. Few rows in a bin make it positive for a perfect model too: about 0.1 on 100 rows.
- ``coverage``: the share of rows that the model may decide alone where ``task.target_precision`` of those have to be right,
  and ``precision``: how many of those were. The threshold that gives the most coverage is chosen on one half of the rows and
  used on the other, both ways round: chosen and measured on the same rows it promises a precision that no next row keeps.

A label that another one begins with is refused: "no" is likely wherever "not at all" is.

Sources: Brier 1950; Naeini et al. 2015 and Nixon et al. 2019 (calibration error, adaptive bins); Geifman and El-Yaniv 2017
(selective classification).

Shape suffixes: N rows; here: B bins.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.labels import INVALID, class_names, macro_f1
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.text import normalise
from tunesmith.recipe import Task
from tunesmith.rundir.records.answers import Output

BINS = 10
ROWS_OF_A_BIN = 10

Floats = NDArray[np.float64]


def calibrated(task: Task) -> Metric:
    """The metric of ``task.labels`` and ``task.target_precision``.

    Raises:
        RecipeError: two labels that the normalisation cannot tell apart, a blank one, or one that another begins with.
    """
    known = class_names(task)
    names = tuple(known.values())
    for name in names:
        longer = next((other for other in names if other != name and other.startswith(name)), None)
        if longer is not None:
            raise RecipeError(
                f"task.labels: {longer!r} begins with {name!r}, so the first is never likelier than the second",
                "name the classes so that none begins with another, or use metric: classification",
            )

    def distribution(answer: str) -> dict[str, float]:
        """Probabilities by label; a bare label is certain, and any other text gives none."""
        try:
            read = json.loads(answer)
        except (ValueError, RecursionError):
            read = {answer: 1.0}
        if not isinstance(read, dict):
            read = {answer: 1.0}
        return {known[key]: float(p) for name, p in read.items() if (key := normalise(name)) in known}

    def class_of(text: str) -> str:
        p_of = distribution(text)
        return max(p_of, key=lambda name: p_of[name]) if p_of else INVALID

    def score(answer: str, reference: str) -> Score:
        label = known.get(normalise(reference))
        if label is None:
            raise ValueError(f"{reference[:80]!r} is none of task.labels")
        p_of = distribution(answer)
        brier = sum((p_of.get(name, 0.0) - (name == label)) ** 2 for name in names)
        return {"score": float(class_of(answer) == label), "p_right": p_of.get(label, 0.0), "brier": brier}

    def sureness(rows: Sequence[Output]) -> tuple[Floats, Floats]:
        """How sure the model was of its answer to each row, and whether it was right; shapes (N,), (N,)."""
        sure = [max(distribution(row.output).values(), default=0.0) for row in rows]
        return np.array(sure), np.array([row.score or 0.0 for row in rows])

    of_all: dict[str, Callable[[Sequence[Output]], float | None]] = {
        "macro_f1": macro_f1((*names, INVALID), class_of),
        "ece": lambda rows: calibration_error(*sureness(rows)),
        "coverage": lambda rows: float(_decided(*sureness(rows), task.target_precision).mean()),
        "precision": lambda rows: _precision(*sureness(rows), task.target_precision),
    }
    return Metric(name="calibrated", score=score, tie_break="p_right", binary=True, of_all=of_all)


def calibration_error(sure_N: Floats, right_N: Floats) -> float:
    """Mean distance between sureness and being right, over bins of as many rows each."""
    order = np.argsort(sure_N, kind="stable")
    bins_B = np.array_split(order, max(1, min(BINS, len(order) // ROWS_OF_A_BIN)))
    return float(sum(abs(sure_N[rows].mean() - right_N[rows].mean()) * len(rows) for rows in bins_B) / len(order))


def _decided(sure_N: Floats, right_N: Floats, target: float) -> NDArray[np.bool_]:
    """Rows at or above the threshold that the other half of the rows (every second one) chose."""
    even_N = np.arange(len(sure_N)) % 2 == 0
    thresholds = [threshold(sure_N[half_N], right_N[half_N], target) for half_N in (~even_N, even_N)]
    return sure_N >= np.where(even_N, *thresholds)


def _precision(sure_N: Floats, right_N: Floats, target: float) -> float | None:
    decided_N = _decided(sure_N, right_N, target)
    return float(right_N[decided_N].mean()) if decided_N.any() else None


def threshold(sure_N: Floats, right_N: Floats, target: float) -> float:
    """The lowest sureness from which on ``target`` of the rows are right; infinite where there is none."""
    order = np.argsort(-sure_N, kind="stable")
    sure_N, right_N = sure_N[order], right_N[order]
    precision_N = np.cumsum(right_N) / np.arange(1, len(right_N) + 1)
    last_of_its_sureness_N = np.append(sure_N[1:] < sure_N[:-1], True)[: len(sure_N)]
    reached = np.flatnonzero((precision_N >= target - 1e-12) & last_of_its_sureness_N)
    return float(sure_N[reached[-1]]) if len(reached) else float("inf")
