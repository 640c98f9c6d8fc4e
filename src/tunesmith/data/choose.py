"""Which rows of a source are taken, and how often each is trained on: by a hash of the seed and the row's content.

The rows with the smallest hashes are taken, so the order of the file plays no role, and rows that are added push out no
more rows than they are. Refused: the first N rows (files are sorted by date, topic or difficulty) and a random generator
that is run along the file (one row more in front, and another sample).

A weight repeats rows of the train part alone: a row that stands twice in test is one piece of evidence counted twice.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np


def places(ids: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """A place in [0, 1) for each row, float64; those of two purposes have nothing to do with each other."""
    digests = b"".join(hashlib.blake2b(f"{purpose}/{seed}/{name}".encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, np.uint64) / 2.0**64


def chosen(row_places: np.ndarray, entries: np.ndarray, counts: Sequence[int | None], limit: int | None) -> np.ndarray:
    """Which rows are taken.

    Args:
        row_places: of the rows, as ``places`` has them.
        entries: the number of the path of each row.
        counts: rows to take of each path; None is all.
        limit: rows to take of what is left.

    Returns:
        bool, one a row.
    """
    taken = np.ones(len(row_places), bool)
    for entry, count in enumerate(counts):
        if count is not None:
            _keep(taken, np.flatnonzero(entries == entry), row_places, count)
    if limit is not None:
        _keep(taken, np.flatnonzero(taken), row_places, limit)
    return taken


def repeats(place: float, weight: float) -> int:
    """How often a train row is trained on; its place decides over the fraction."""
    return math.floor(weight) + (place < weight - math.floor(weight))


def _keep(taken: np.ndarray, rows: np.ndarray, row_places: np.ndarray, count: int) -> None:
    """Leave out the rows with the largest places."""
    order = np.argsort(row_places[rows], kind="stable")
    taken[rows[order[count:]]] = False
