"""Ids and places of all rows, compressed, since they are looked up for the few that a report shows."""

import zlib
from collections.abc import Callable

from tunesmith.rundir.records.quality import RowPlace
from tunesmith.rundir.rows import Row

FindPlaces = Callable[[set[int]], dict[int, RowPlace]]  # by row number, in order of reading from 0
_BLOCK = 2048  # rows whose ids and places are compressed together


class Places:
    """Ids and places: ``add`` for each batch of rows as they are read, ``find`` at any time."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[str] = []

    def add(self, rows: list[Row]) -> None:
        """Append the rows of a batch."""
        self._open.extend([f"{row.id}\t{row.place}" for row in rows])
        while len(self._open) >= _BLOCK:
            self._blocks.append(zlib.compress("\0".join(self._open[:_BLOCK]).encode("utf-8", "surrogatepass"), 1))
            del self._open[:_BLOCK]

    def find(self, rows: set[int]) -> dict[int, RowPlace]:
        """Id and place of each of ``rows``, by row number."""
        places, number, names = {}, -1, []
        for row in sorted(rows):
            if row // _BLOCK != number:
                number = row // _BLOCK
                whole = number < len(self._blocks)
                names = (
                    zlib.decompress(self._blocks[number]).decode("utf-8", "surrogatepass").split("\0") if whole else self._open
                )
            identity, _, place = names[row % _BLOCK].partition("\t")
            places[row] = RowPlace(id=identity, place=place)
        return places
