"""Classification with a fixed list of labels and an explicit class for everything else.

An answer is a label when it equals one on the ladder of ``text.normalise``; what equals none is *invalid*, which is
always wrong: the row still counts among those that ask for its label, so its recall falls.

Macro-F1 is the mean of F1 over the labels that occur among the references; a label that nobody asks for has no recall.
scikit-learn computes the same as ``f1_score(..., labels=those, average="macro")``. Refused: its default, the mean over all
classes that occur, answers included. There one invalid answer among 190 is a third class with an F1 of 0 beside two labels
and takes a third of the figure (96.0 became 64.0), and a resample without that row gives it back.

**Rare classes.** Two rows of a class say next to nothing of its F1, and a bootstrap of them believes that they say all: with a
class of 2 % of 100 rows and a gain on it, its 95 % intervals held the gain in 78 to 83 % of simulated tasks. So every draw gets
imagined rows: one of each class that is asked for, right or wrong in each arm with even odds (for one arm that is Jeffreys'
prior), and a tenth of one for each way in which arms may answer the class wrongly. Then 93.4 to 96.6 % hold it (ten cells of
classes, rows and shared mistakes, standard errors 0.6 to 1.1; 99.5 where nothing was gained). Refused: a prior on whole
confusion matrices, whose C squared cells outweigh the rows. A class without a test row is no part of the figure.

Source of the idea: Goutte and Gaussier 2005 (F1 as a posterior).

Shape suffixes here: C classes (the labels and invalid).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.text import normalise
from tunesmith.evaluate.resample import Imagined, SumStatistic
from tunesmith.recipe import Task
from tunesmith.rundir.records.answers import Output

ANSWERED_WRONGLY = 0.1  # imagined rows of other classes for each way of answering a class
INVALID = ""  # no label is blank: the recipe refuses it


def classification(task: Task) -> Metric:
    """Accuracy (``classification``) or macro-F1 (``macro_f1``) as headline; the rows are scored alike.

    Raises:
        RecipeError: two labels that the normalisation cannot tell apart, or a blank one.
    """
    known = class_names(task)

    def class_of(text: str) -> str:
        return known.get(normalise(text), INVALID)

    def score(answer: str, reference: str) -> Score:
        of_answer, of_reference = class_of(answer), class_of(reference)
        if of_reference == INVALID:
            raise ValueError(f"{reference[:80]!r} is none of task.labels")
        return {
            "score": float(of_answer == of_reference),
            "strict": float(answer == reference),
            "invalid": float(of_answer == INVALID),
        }

    corpus = macro_f1((*known.values(), INVALID), class_of) if task.metric == "macro_f1" else None
    return Metric(name=task.metric, score=score, corpus=corpus, tie_break="strict", binary=True)


def class_names(task: Task) -> dict[str, str]:
    """``task.labels`` by what they are on the ladder of ``normalise``.

    Raises:
        RecipeError: two labels that the normalisation cannot tell apart, or a blank one.
    """
    names = task.labels
    assert names is not None  # the recipe sees to it
    known = {normalise(name): name for name in names}
    if len(known) != len(names) or "" in known:
        raise RecipeError(
            f"task.labels: {len(names)} labels, and {len(known) - ('' in known)} that differ in more than case, punctuation "
            "and articles",
            "give each class a name of its own",
        )
    return known


def labels_without_rows(task: Task, references: Iterable[str]) -> list[str]:
    """Those of ``task.labels`` that no reference asks for.

    Raises:
        RecipeError: two labels that the normalisation cannot tell apart, or a blank one.
    """
    asked_for = {normalise(reference) for reference in references}
    return [name for key, name in class_names(task).items() if key not in asked_for]


def labels_line(task: Task) -> str:
    """What an answer looks like."""
    return f"Answer with exactly one of these and nothing else: {', '.join(task.labels or ())}."


def macro_f1(classes: tuple[str, ...], class_of: Callable[[str], str]) -> SumStatistic:
    """Mean of F1 over the classes that are asked for, from how often each was answered, asked and both.

    The counts of a row have shape (3 C,). No reference is invalid, so that class never enters the mean.
    """
    column = {name: number for number, name in enumerate(classes)}

    def counts(rows: Sequence[Output]) -> NDArray[np.float64]:
        counts_N3C = np.zeros((len(rows), 3, len(classes)))
        for counts_3C, row in zip(counts_N3C, rows, strict=True):
            answer, reference = column[class_of(row.output)], column[class_of(row.reference)]
            counts_3C[0, answer] = counts_3C[1, reference] = 1.0
            counts_3C[2, answer] = answer == reference
        return counts_N3C.reshape(len(rows), -1)

    def value(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        answers, references, right = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, len(classes)), -2, 0)
        occurs = references > 0
        f1 = np.where(occurs, 2.0 * right / np.where(occurs, answers + references, 1.0), 0.0)
        return f1.sum(axis=-1) / occurs.sum(axis=-1)

    def imagined(rows: Sequence[Output], arms: int) -> Imagined:
        """For each class asked for: a row of it in all ways of being right, and rows of others in all ways of answering it."""
        ways = np.array(list(product((0.0, 1.0), repeat=arms)))  # whether each arm answers the class, shape (W, A)
        references = sorted({column[class_of(row.reference)] for row in rows})
        kinds = [(number, own, way) for number in references for own in (1.0, 0.0) for way in ways if own or way.any()]
        counts_AP3C = np.zeros((arms, len(kinds), 3, len(classes)))  # P kinds of imagined rows
        for place, (number, own, way) in enumerate(kinds):
            counts_AP3C[:, place, 0, number] = way
            counts_AP3C[:, place, 1, number] = own
            counts_AP3C[:, place, 2, number] = way * own
        weights = [1.0 / len(ways) if own else ANSWERED_WRONGLY for _, own, _ in kinds]
        return Imagined(counts_AP3C.reshape(arms, len(kinds), -1), np.array(weights))

    return SumStatistic(counts, value, imagined)
