"""MinHash signatures of all rows in one table that grows where it stands.

A million signatures are 256 MB, the largest thing that the search for near duplicates holds. A list of pieces, joined at
the end, is twice that for a moment; the table is enlarged by a sixteenth in place instead, which the system does by moving
pages of memory and not their bytes.
"""

import numpy as np

from tunesmith.data.minhash import NUM_PERM

_LEAST = 1024  # rows


class SignatureTable:
    """Signatures in order of reading."""

    def __init__(self) -> None:
        self._table = np.empty((0, NUM_PERM), np.uint16)
        self._rows = 0

    def add(self, signatures: np.ndarray) -> None:
        """Append uint16 (rows, 128); no array that ``whole`` gave may still be in use."""
        end = self._rows + len(signatures)
        if end > len(self._table):
            self._table.resize((max(end, len(self._table) * 17 // 16, _LEAST), NUM_PERM), refcheck=False)
        self._table[self._rows : end] = signatures
        self._rows = end

    def whole(self) -> np.ndarray:
        """uint16 (rows, 128): a view of the table."""
        return self._table[: self._rows]
