"""How every verb reads rows: with a bar over the bytes, without Python's search for cycles, and a recipe's by its keys."""

import contextlib
import gc
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

from tunesmith.data.parts import is_split, listed, part_of
from tunesmith.data.read import Reader, ReadOptions
from tunesmith.data.source import HUB_ID, Source, find, find_all, is_hub_id
from tunesmith.data.tables import hub_splits
from tunesmith.data.task_columns import columns_hint
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.recipe.data import Data
from tunesmith.rundir.records.check import Reading
from tunesmith.rundir.records.quality import QualityReport
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress


def trained_on_reader(recipe: Recipe) -> Reader:
    """The rows of ``data.trained_on``, to be read as those of ``data.path`` are; bad ones are refused.

    Raises:
        DataError: nothing to read there.
    """
    path = recipe.data.trained_on
    assert path is not None, "the recipe names no rows of a training"
    return Reader(find(str(path)), replace(options_of(recipe.data), group_by=None, on_bad_row="refuse"))


def reader_of(recipe: Recipe, rejected: Path | None = None) -> Reader:
    """The rows of a recipe, to be read as its section ``data`` says.

    Args:
        rejected: file for bad rows, where the recipe keeps them aside.

    Raises:
        DataError: nothing to read there, or rows that are split already, and the recipe does not say what becomes of that.
    """
    return Reader(_source_of(recipe), options_of(recipe.data), rejected)


def options_of(settings: Data) -> ReadOptions:
    """How the section ``data`` says that rows are read."""
    return ReadOptions(
        settings.format,
        settings.columns,
        settings.group_by,
        settings.on_bad_row,
        encoding=settings.encoding,
        delimiter=settings.delimiter,
        turns=settings.turns,
        reasoning=settings.reasoning,
        take=settings.take,
    )


def _source_of(recipe: Recipe) -> Source:
    """The rows of a recipe; where they are split already, the recipe must say what becomes of that."""
    settings = recipe.data
    paths = [rows.path for rows in settings.paths]
    for path in paths:
        if not Path(path).exists() and not is_hub_id(path):
            hint = f"a relative path starts from the directory of the recipe file; {HUB_ID}"
            raise DataError(f"data.path: {path}: no such file", hint)
    source = find(settings.path) if isinstance(settings.path, str) else find_all(paths)
    members = tuple([_with_splits(member) for member in source.members])
    source = replace(source, members=members) if members else _with_splits(source)
    named = source.named_parts
    parts = [part for part, _ in named]
    if settings.split is None and is_split(parts):
        raise DataError(
            f"data.path: {source.label}: these rows are split already: {listed(named)}",
            "add to the section data either 'split: given', which keeps these parts, or 'split: drawn', which puts all rows "
            "together and draws new ones",
        )
    if settings.split != "given":
        return source
    if not is_split(parts) or None in parts:
        raise DataError(
            f"data.split: given, but the names do not say the part of all rows: {listed(named) or source.label}",
            "name files or folders train, test and where there is one validation; or split: drawn",
        )
    return replace(source, given=True)


def _with_splits(source: Source) -> Source:
    """A data set of the hub with its splits, where its id names none and there are several."""
    if source.hub is None or ":" in source.hub:
        return source
    splits = hub_splits(source.hub)
    return replace(source, splits=tuple(splits)) if is_split(map(part_of, splits)) else source


def refuse_plain_texts(recipe: Recipe, reading: Reading, report: QualityReport) -> None:
    """Refuse plain texts where answers are to be scored, unless the recipe names them: nobody asks for one.

    Raises:
        DataError: the rows are plain texts, and neither ``data.format`` nor ``data.columns`` says so.
    """
    settings = recipe.data
    if "text" not in reading.kinds or settings.format == "text" or settings.columns is not None:
        return
    paths = ", ".join(rows.path for rows in settings.paths)
    message = f"{paths}: {reading.kinds['text']:,} plain texts, which nobody asks for, so no answer can be scored"
    rendered = next((finding.hint for finding in report.findings if finding.code == "rendered-template"), None)
    hint = f"{rendered or columns_hint(reading)}; data.format: text trains the texts themselves, with the stages up to train"
    raise DataError(f"{message} (task.metric: {recipe.task.metric})", hint)


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
