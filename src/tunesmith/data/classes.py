"""Short answers that repeat are classes: how they are balanced, and which of them are spelled in another way.

Answers of at most 64 characters are numbered, 4 bytes a row, until there are more than 10,000 different ones. Classes are what
at most 50 of them make that cover 90 % of the answers: ``positive.`` among ``Positive`` is then a misspelling and not a class.
"""

import math
import re
from array import array
from collections import Counter

import numpy as np

from tunesmith.data.answer_format import CALL, NONE
from tunesmith.data.finding import SHOWN, Example, Finding, examples, excerpt
from tunesmith.rundir.records.quality import Classes

SHORT = 64  # characters of an answer that may be a class
MOST_SHORT = 10_000  # distinct short answers beyond which answers are no classes
MOST_CLASSES = 50
RARE = 10  # rows below which a class is rare


class ShortAnswers:
    """Collects short answers over a stream, one call of ``add`` for each row."""

    def __init__(self) -> None:
        self._rows: array[int] | None = array("i")
        self._numbers: dict[str, int] = {}

    def add(self, answer: str | None) -> None:
        """Append a row's answer; None where it is no short one."""
        if self._rows is None:
            return
        self._rows.append(-1 if answer is None else self._numbers.setdefault(answer, len(self._numbers)))
        if len(self._numbers) > MOST_SHORT:
            self._rows, self._numbers = None, {}

    def _ranked(self, formats: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Numbers of the classes, the largest first, and the rows of every short answer; None where there are no classes."""
        answered = int(np.count_nonzero((formats != NONE) & (formats != CALL)))
        if self._rows is None or not self._numbers or not answered:
            return None
        codes = np.frombuffer(self._rows, np.int32)
        counts = np.bincount(codes[codes >= 0], minlength=len(self._numbers))
        ranked = np.argsort(-counts, kind="stable")
        if len(ranked) > MOST_CLASSES:
            ranked = ranked[:MOST_CLASSES]
            ranked = ranked[counts[ranked] > 1]
        if counts[ranked].sum() < 0.9 * answered or answered < max(20, 5 * len(ranked)):
            return None
        return ranked, counts

    def report(self, formats: np.ndarray) -> Classes | None:
        """Class balance, where at most 50 short answers cover 90 % of the rows and each has 5 rows on average; else None."""
        ranking = self._ranked(formats)
        if ranking is None:
            return None
        ranked, counts = ranking
        names = list(self._numbers)
        shares = counts[ranked] / counts[ranked].sum()
        entropy = float(-(shares * np.log2(shares)).sum()) + 0.0
        named: Counter[str] = Counter()
        for number in ranked.tolist():
            named[excerpt(names[number])] += int(counts[number])
        return Classes(
            counts=dict(named.most_common()),
            covered=int(counts[ranked].sum()),
            majority_share=float(shares[0]),
            entropy_bits=entropy,
            entropy_share=entropy / math.log2(len(ranked)) if len(ranked) > 1 else 0.0,
            below_10=tuple(excerpt(names[number]) for number in ranked.tolist() if counts[number] < RARE),
        )

    def findings(self, formats: np.ndarray) -> list[Finding]:
        """Classes spelled in another way, answers that are none, rare classes and a class that is nearly everything."""
        ranking = self._ranked(formats)
        if ranking is None or self._rows is None:
            return []
        ranked, counts = ranking
        codes, names = np.frombuffer(self._rows, np.int32), [excerpt(name) for name in self._numbers]
        covered = int(counts[ranked].sum())
        findings: list[Finding] = []
        variants = self._variants(counts)
        if variants:
            rows = np.flatnonzero(np.isin(codes, list(variants)))
            shown = [
                Example(row, f"{names[codes[row]]!r}, elsewhere {names[variants[int(codes[row])]]!r}")
                for row in rows[:SHOWN].tolist()
            ]
            hint = "To an exact metric, and to the program behind it, these are different answers: write one of them."
            text = "answers that spell a class in another way"
            findings.append(Finding("label-variants", "wrong", text, len(rows), covered, hint, shown))
        other = np.flatnonzero(~np.isin(codes, [*ranked.tolist(), *variants]) & (formats > CALL))
        if len(other):
            hint = f"{covered:,} answers are one of {len(ranked)} short ones; is there a class for these?"
            shown = [Example(row, names[codes[row]] if codes[row] >= 0 else "") for row in other[:SHOWN].tolist()]
            text = "answers that are none of the classes"
            findings.append(Finding("not-a-class", "suspect", text, len(other), covered + len(other), hint, shown))
        rare = [number for number in ranked.tolist() if counts[number] < RARE and number not in variants]
        if rare:
            rows = np.flatnonzero(np.isin(codes, rare))
            listed = ", ".join(f"{names[number]!r} {counts[number]}" for number in rare[:10])
            hint = f"{listed}. A class needs tens of rows to be learned and to be measured: collect more, or merge it."
            text = "answers of a class with fewer than 10 rows"
            findings.append(Finding("rare-classes", "note", text, len(rows), covered, hint, examples(rows)))
        share = counts[ranked[0]] / covered
        if share >= 0.8 and len(ranked) > 1:
            hint = f"Always answering {names[ranked[0]]!r} scores {share:.0%}: choose macro F1, or balance the classes."
            text = "answers that are the largest class"
            findings.append(Finding("imbalance", "note", text, int(counts[ranked[0]]), covered, hint))
        return findings

    def _variants(self, counts: np.ndarray) -> dict[int, int]:
        """Numbers of the rarer spellings of an answer, each with that of its commonest."""
        groups: dict[str, list[int]] = {}
        spellings = list(self._numbers)
        for number in np.argsort(-counts, kind="stable").tolist():
            groups.setdefault(folded_label(spellings[number]), []).append(number)
        return {number: group[0] for group in groups.values() for number in group[1:]}


def folded_label(label: str) -> str:
    """``label`` without case, outer punctuation, and the difference of space, hyphen and underscore.

    Leading signs and inner punctuation stay: ``-1`` is not ``1``, ``C#`` is not ``C``.
    """
    bare = label.strip().strip("\"'`*").rstrip(" .,;:!?\"'`*")
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", bare).casefold() or label
