"""How every verb reads rows: with a bar over the bytes, and without Python's search for cycles."""

import contextlib
import gc
from collections.abc import Generator, Iterator

from tunesmith.data.read import Reader
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress


def with_bar(reader: Reader) -> Iterator[list[Row]]:
    """The reader's batches, with a bar over its bytes."""
    with progress("reading", reader.total_bytes) as bar, _without_cycles():
        reader.progress = bar.advance
        yield from reader.batches()


@contextlib.contextmanager
def _without_cycles() -> Generator[None]:
    """Without Python's search for cycles: rows are trees, and looking at millions of them is a tenth of a check."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
