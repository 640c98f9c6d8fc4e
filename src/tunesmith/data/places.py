"""Ids and places of all rows, looked up for the few that a report shows."""

from collections.abc import Callable

from tunesmith.data.kept_texts import KeptTexts
from tunesmith.rundir.records.quality import RowPlace
from tunesmith.rundir.rows import Row

FindPlaces = Callable[[set[int]], dict[int, RowPlace]]  # by row number, in order of reading from 0


class Places:
    """Ids and places: ``add`` for each batch of rows as they are read, ``find`` at any time."""

    def __init__(self) -> None:
        self._names = KeptTexts()

    def add(self, rows: list[Row]) -> None:
        """Append the rows of a batch."""
        self._names.add([f"{row.id}\t{row.place}" for row in rows])

    def find(self, rows: set[int]) -> dict[int, RowPlace]:
        """Id and place of each of ``rows``, by row number."""
        places: dict[int, RowPlace] = {}
        for row, name in self._names.get(rows).items():
            identity, _, place = name.partition("\t")
            places[row] = RowPlace(id=identity, place=place)
        return places
