"""How every verb reads rows: with a bar over the bytes, without Python's search for cycles, and a recipe's by its keys."""

import contextlib
import gc
from collections.abc import Generator, Iterator
from pathlib import Path

from tunesmith.data.read import Reader, ReadOptions
from tunesmith.data.source import HUB_ID, is_hub_id
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress


def reader_of(recipe: Recipe, rejected: Path | None = None) -> Reader:
    """The rows of a recipe, to be read as its section ``data`` says.

    Args:
        rejected: file for bad rows, where the recipe keeps them aside.

    Raises:
        DataError: nothing to read there.
    """
    settings = recipe.data
    if not Path(settings.path).exists() and not is_hub_id(settings.path):
        hint = f"a relative path starts from the directory of the recipe file; {HUB_ID}"
        raise DataError(f"data.path: {settings.path}: no such file", hint)
    options = ReadOptions(
        settings.format,
        settings.columns,
        settings.group_by,
        settings.on_bad_row,
        encoding=settings.encoding,
        delimiter=settings.delimiter,
        turns=settings.turns,
    )
    return Reader(settings.path, options, rejected)


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
