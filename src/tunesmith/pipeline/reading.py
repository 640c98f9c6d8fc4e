"""How every verb reads rows: with a bar over the bytes, and without Python's search for cycles."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

from tunesmith.data.near import NearDuplicates
from tunesmith.data.quality import PlaceColumn, Quality
from tunesmith.data.read import Reader
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress


def with_bar(reader: "Reader") -> Iterator[list[Row]]:
    """The reader's batches, with a bar over its bytes."""
    with progress("reading", reader.total_bytes) as bar, _without_cycles():
        reader.progress = bar.advance
        yield from reader.batches()


@contextlib.contextmanager
def _without_cycles() -> Iterator[None]:
    """Without Python's search for cycles: rows are trees, and looking at millions of them is a tenth of a check."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def near_report(near: NearDuplicates, quality: Quality) -> dict[str, Any]:
    """What the search for near duplicates found, with ids and places of rows."""
    rows = len(near.groups())
    return dataclasses.asdict(near.report(PlaceColumn(quality.places, "id", rows), PlaceColumn(quality.places, "place", rows)))
