"""Rows that a model was trained on before, found again among the rows that would test it.

A model that somebody else trained was trained on rows that nobody here drew. Whoever knows the file names it
(``data.trained_on``), and its rows are looked for in all three ways in which a row of ours gives an answer away: the same
question up to case and white space or a piece of the same conversation (``split.py``), a question that is nearly the same
(``near.py``), and a row that stands whole inside a longer conversation (``turns.py``). What is found goes to train with its
whole group, where a prompt may show it: the model had it already, so the prompts may have it as well.

Refused: comparing answers too (a model that was trained on a question with another answer has still seen it); hashes of rows
alone, which one changed blank gets past.

Cost: what a check of both files costs, a second time.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from tunesmith.data.near import NearDuplicates
from tunesmith.data.split import DEV, PARTS, TEST, TRAIN, SplitFacts
from tunesmith.errors import DataError
from tunesmith.rundir.rows import Row

BATCH = 2048


class SeenRows:
    """Takes the rows to look at, then those that a model was trained on."""

    def __init__(self) -> None:
        self._facts, self._near = SplitFacts(), NearDuplicates()
        self._ours = 0

    def add_ours(self, rows: Iterable[Row]) -> None:
        """Take in rows that are to be looked at; all of them before the first of the others."""
        self._ours += self._add(rows)

    def add_trained_on(self, rows: Iterable[Row]) -> int:
        """Take in rows of the training; returns how many."""
        return self._add(rows)

    def found(self) -> np.ndarray:
        """bool, one a row of ours: whether the model was trained on it, or on one that gives it away."""
        theirs = np.arange(len(self._facts)) >= self._ours
        known = np.zeros(len(self._facts), bool)
        for groups in (self._facts.groups, self._near.groups()):
            known |= np.isin(groups, groups[theirs])
        known |= self._facts.turns.standing(~theirs, theirs)[0] >= 0
        return known[: self._ours]

    def _add(self, rows: Iterable[Row]) -> int:
        before, batch = len(self._facts), list[Row]()
        for row in rows:
            self._facts.add(replace(row, group=None))  # groups are of our file; here a row is what it asks
            batch.append(row)
            if len(batch) == BATCH:
                self._near.add(batch)
                batch = []
        if batch:
            self._near.add(batch)
        return len(self._facts) - before


def keep_out(facts: SplitFacts, parts: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, int]:
    """Take rows that a model was trained on out of dev and test, with their whole groups.

    Args:
        parts: as ``split`` returned them; not altered.
        seen: bool, one a row.

    Returns:
        The parts after that, and how many rows changed sides.

    Raises:
        DataError: nothing is left to choose or to test on.
    """
    groups = facts.groups
    moving = np.isin(groups, groups[seen]) & (parts != TRAIN)
    kept = np.where(moving, TRAIN, parts).astype(parts.dtype)
    for part in (DEV, TEST):
        if not (kept == part).any():
            new = int((~np.isin(groups, groups[seen])).sum())
            known = f"{int(seen.sum()):,} of {len(parts):,} rows or on near duplicates of them"
            raise DataError(
                f"data.trained_on: the model was trained on {known}, which leaves the {PARTS[part]} part empty "
                f"({new:,} rows are new to it)",
                "bring rows that it was not trained on; with some of them raise data.test_fraction and data.dev_fraction",
            )
    return kept, int(moving.sum())
