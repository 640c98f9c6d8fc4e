"""The train rows that a pass which scores layers runs over (``train/sensitivity.py``), and the packs that they come in.

A base under a budget and a GGUF with a type for each tensor are chosen by the same kind of pass, so they take the same rows of
a run. A pass costs what training on its rows costs, whatever the length of the file.

Refused: packs that compute a common beginning once (``train/prefix.py``). They are as right on average, but the gradients of
many rows meet at the tokens that they share, and the square of a sum is a noisier figure than a sum of squares.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from tunesmith.errors import DataError
from tunesmith.train.documents import Documents, Pack, make_pack

ROWS, TOKENS = 256, 16_384  # at most; one row may be longer
PACK = 512  # tokens of a pack, or those of the longest row


def scored_rows(documents: Documents, seed: int) -> list[int]:
    """Numbers of documents, drawn over all of them (files are often sorted), in the order of the draw.

    Args:
        documents: of the train part.
        seed: of the draw.

    Raises:
        DataError: nothing is supervised in any of them.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    chosen: list[int] = []
    tokens = 0
    for document in itertools.islice((each for each in map(int, order) if len(documents.spans(each))), ROWS):
        length = int(documents.lengths[document])
        if not chosen or tokens + length <= TOKENS:
            chosen.append(document)
            tokens += length
    if not chosen:
        raise DataError(
            f"none of {len(documents):,} train rows has a supervised token to score the layers with",
            "give an assistant turn of a row weight 1",
        )
    return chosen


def packs_of(documents: Documents, rows: Sequence[int]) -> list[Pack]:
    """The rows in packs, in their order."""
    packs: list[list[int]] = []
    room = 0
    for document in rows:
        length = int(documents.lengths[document])
        if length > room:
            packs.append([])
            room = max(PACK, length)
        packs[-1].append(document)
        room -= length
    return [make_pack(documents, pack) for pack in packs]
