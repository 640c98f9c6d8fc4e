"""Classification with a fixed list of labels and an explicit class for everything else.

An answer is a label when it equals one on the ladder of ``text.normalise``; what equals none is *invalid*, which is
always wrong: the row still counts among those that ask for its label, so its recall falls.

Macro-F1 is the mean of F1 over the labels that occur among the references; a label that nobody asks for has no recall.
scikit-learn computes the same as ``f1_score(..., labels=those, average="macro")``. Refused: its default, the mean over all
classes that occur, answers included. There one invalid answer among 190 is a third class with an F1 of 0 beside two labels
and takes a third of the figure (96.0 became 64.0), and a resample without that row gives it back.

Shape suffixes here: C classes (the labels and invalid).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.metric import Metric, Row, Score
from tunesmith.evaluate.metrics.text import normalise
from tunesmith.evaluate.resample import SumStatistic

INVALID = ""  # no label is blank: the recipe refuses it


def classification(name: str, labels: tuple[str, ...]) -> Metric:
    """Accuracy (``classification``) or macro-F1 (``macro_f1``) as headline; the rows are scored alike.

    Raises:
        RecipeError: two labels that the normalisation cannot tell apart, or a blank one.
    """
    known = {normalise(label): label for label in labels}
    if len(known) != len(labels) or "" in known:
        raise RecipeError(
            f"task.labels: {len(labels)} labels, and {len(known) - ('' in known)} that differ in more than case, punctuation "
            "and articles",
            "give each class a name of its own",
        )

    def class_of(text: str) -> str:
        return known.get(normalise(text), INVALID)

    def score(answer: str, reference: str) -> Score:
        given, wanted = class_of(answer), class_of(reference)
        if wanted == INVALID:
            raise ValueError(f"{reference[:80]!r} is none of task.labels")
        return {"score": float(given == wanted), "strict": float(answer == reference), "invalid": float(given == INVALID)}

    corpus = _macro_f1((*labels, INVALID), class_of) if name == "macro_f1" else None
    return Metric(name, score, corpus, tie_break="strict", binary=True)


def _macro_f1(classes: tuple[str, ...], class_of: Callable[[str], str]) -> SumStatistic:
    """Mean of F1 over the classes that are asked for, from how often each was answered, asked and both.

    The counts of a row have shape (3 C,). No reference is invalid, so that class never enters the mean.
    """
    place = {name: number for number, name in enumerate(classes)}

    def counts(rows: list[Row]) -> NDArray[np.float64]:
        counts_N3C = np.zeros((len(rows), 3, len(classes)))
        for counts_3C, row in zip(counts_N3C, rows, strict=True):
            given, wanted = place[class_of(row["output"])], place[class_of(row["reference"])]
            counts_3C[0, given] = counts_3C[1, wanted] = 1.0
            counts_3C[2, given] = given == wanted
        return counts_N3C.reshape(len(rows), -1)

    def value(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        answered, asked, right = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, len(classes)), -2, 0)
        occurs = asked > 0
        f1 = np.where(occurs, 2.0 * right / np.where(occurs, answered + asked, 1.0), 0.0)
        return f1.sum(axis=-1) / occurs.sum(axis=-1)

    return SumStatistic(counts, value)
