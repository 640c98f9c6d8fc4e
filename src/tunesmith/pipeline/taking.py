"""The rows of a recipe as the stage ``data`` takes them: all that are read, or those that ``count`` and ``limit`` choose.

Which rows have the smallest hashes is known after the last row alone, so where rows are chosen they are first written
aside, and come from there. They are all checked, whichever are taken.
"""

import itertools
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.data.choose import chosen, places
from tunesmith.data.read import Reader
from tunesmith.pipeline.reading import with_bar
from tunesmith.recipe import Recipe
from tunesmith.rundir import Row, stream_rows, writing_rows

logger = logging.getLogger(__name__)

BATCH = 2048


@dataclass(frozen=True)
class Batch:
    """Rows that stand one after another.

    Attributes:
        rows: up to 2,048 of them.
        part: of a split that is there already, or None.
        entry: the number of their path.
    """

    rows: list[Row]
    part: str | None
    entry: int


def taken(reader: Reader, recipe: Recipe, aside: Path) -> Iterator[Batch]:
    """The rows that are taken, in the order of reading.

    Args:
        aside: a file for all rows, where some are chosen; it is gone at the end.

    Raises:
        DataError: as the reader.
    """
    paths, limit = recipe.data.paths, recipe.data.limit
    if limit is None and all(rows.count is None for rows in paths):
        for rows in with_bar(reader):
            yield Batch(rows, reader.part, reader.entry)
        return
    names: list[str | None] = []
    digits = array("d")
    entries, parts = array("L"), array("L")
    with writing_rows(aside) as write:
        for rows in with_bar(reader):
            write(rows)
            if reader.part not in names:
                names.append(reader.part)
            digits.extend(places([row.id for row in rows], recipe.seed, "take").tolist())
            entries.extend([reader.entry] * len(rows))
            parts.extend([names.index(reader.part)] * len(rows))
    entry_of, places_of = np.array(entries, np.int64), np.array(digits)
    take = chosen(places_of, entry_of, [rows.count for rows in paths], limit)
    for number, rows in enumerate(paths):
        there, kept = int((entry_of == number).sum()), int(take[entry_of == number].sum())
        fewer = f", fewer than its count of {rows.count:,}" if rows.count is not None and there < rows.count else ""
        logger.info(f"data: {rows.path}: {kept:,} of {there:,} rows are taken{fewer}")
    kept_rows = itertools.compress(stream_rows(aside), take.tolist())
    part_of: list[int] = np.array(parts)[take].tolist()
    path_of: list[int] = entry_of[take].tolist()
    following = zip(part_of, path_of, kept_rows, strict=True)
    for (part, entry), run in itertools.groupby(following, key=lambda item: (item[0], item[1])):
        while rows := [item[2] for item in itertools.islice(run, BATCH)]:
            yield Batch(rows, names[part], entry)
    aside.unlink()
