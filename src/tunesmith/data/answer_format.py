"""In which format an answer is written: a number of one byte, told from its first and last characters.

The per-row pass (``answer_profile``) and what it collects (``json_shapes``, ``classes``) speak of formats by these numbers.
Broken JSON is still JSON that somebody meant, so it has a number of its own.
"""

import numpy as np

FORMATS = ("none", "empty", "tool call", "JSON object", "JSON array", "broken JSON", "code fence", "number", "text")
NONE, EMPTY, CALL, OBJECT, ARRAY, BROKEN, FENCED, NUMBER, TEXT = range(len(FORMATS))
MAJORITY = 0.6  # share from which one format is what the answers are meant to have


def majority(counts: np.ndarray) -> str | None:
    """The format that at least 60 % of the filled answers have; broken JSON is nobody's intention."""
    judged = counts[OBJECT:].copy()
    judged[BROKEN - OBJECT] = 0
    best = int(np.argmax(judged)) + OBJECT
    return FORMATS[best] if counts[best] and counts[best] >= MAJORITY * counts[OBJECT:].sum() else None
