"""Rows of Parquet and Arrow files, of the hub and of tables in memory, batch by batch.

Only the columns that the program knows or was told of are read: a table of conversations may carry images. A table has
a null wherever a row lacks a column, and a struct has a null wherever one turn lacks a key that another has, so nulls
are dropped at every depth; a table cannot say ``{"unit": null}``, which is why this loses nothing that was there.
"""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.chunk import Chunk
from tunesmith.data.dialects.column_names import naming_hint
from tunesmith.data.problems import RowError, Unreadable
from tunesmith.errors import DataError

BATCH = 1024


def table_chunks(path: Path, kind: str, prefix: str, wanted: Set[str]) -> Iterator[Chunk]:
    """Rows of a Parquet file or an Arrow IPC file or stream.

    Raises:
        DataError: the file is damaged, or has none of the wanted columns.
    """
    size = path.stat().st_size
    read = 0
    number = 1
    try:
        for table, share in _parquet(path, wanted) if kind == "parquet" else _arrow(path):
            for chunk in record_chunks(table, prefix, number, wanted, str(path)):
                yield chunk
                number += len(chunk.items)
            yield Chunk(prefix, range(0), [], int(size * share) - read)
            read = int(size * share)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a whole {kind} file ({reason:.120})", "write or copy it again") from error
    yield Chunk(prefix, range(0), [], size - read)


def hub_chunks(name: str, wanted: Set[str]) -> Iterator[Chunk]:
    """Rows of a data set that ``datasets`` loads: ``owner/name``, ``owner/name:split`` or ``owner/name:config:split``.

    Without a split it is ``train``, or the only one there is. What was downloaded stays in the user's cache.

    Raises:
        DataError: no such data set, configuration or split, or it cannot be loaded.
        ModuleNotFoundError: ``datasets`` is not installed.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    path, *rest = name.split(":")
    config = rest[0] if len(rest) == 2 else None
    try:
        splits = datasets.get_dataset_split_names(path, config)
        split = rest[-1] if rest else "train" if "train" in splits or len(splits) > 1 else splits[0]
        if split not in splits:
            raise DataError(f"{name}: no split {split}, found {', '.join(splits)}", f"write {path}:{splits[0]}")
        loaded = datasets.load_dataset(path, config, split=split).with_format("arrow")
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "check the name and the network; a file or a directory is read by its path"
        raise DataError(f"{name}: no such file or directory, and the hub does not give it ({reason:.200})", hint) from error
    number = 1
    for table in loaded.iter(batch_size=BATCH):
        for chunk in record_chunks(table, f"{split} row", number, wanted, name):
            yield chunk
            number += len(chunk.items)


def _parquet(path: Path, wanted: Set[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        total = max(file.metadata.num_rows, 1)
        names = file.schema_arrow.names
        columns = [name for name in names if name in wanted]
        unread = pa.schema([pa.field(name, pa.null()) for name in names if name not in wanted])
        done = 0
        for batch in file.iter_batches(batch_size=BATCH, columns=columns or names):
            done += batch.num_rows
            for field in unread if columns else ():
                # The name alone, so that the reader can count what it does not use.
                batch = batch.append_column(field, pa.nulls(batch.num_rows))
            yield batch, done / total


def _arrow(path: Path) -> Iterator[tuple[pa.RecordBatch, float]]:
    with pa.OSFile(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            reader = pa.ipc.open_file(file)
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index), (index + 1) / reader.num_record_batches
        else:
            for batch in pa.ipc.open_stream(file):
                yield batch, file.tell() / file.size()


def record_chunks(table: pa.RecordBatch | pa.Table, prefix: str, number: int, wanted: Set[str], label: str) -> Iterator[Chunk]:
    """Rows of a piece of a table.

    Args:
        number: of its first row.
        label: what errors call the table.

    Raises:
        DataError: none of the wanted columns.
    """
    columns = [name for name in table.column_names if name in wanted]
    if not columns:
        names = ", ".join(table.column_names) or "none"
        raise DataError(f"{label}: no known column, found {names:.300}", naming_hint(table.column_names))
    unread = tuple(name for name in table.column_names if name not in wanted)
    read = table.select(columns)
    for start in range(0, table.num_rows, BATCH):
        items = _rows(read.slice(start, BATCH))
        yield Chunk(prefix, range(number + start, number + start + len(items)), items, 0, unread)


def _rows(table: pa.RecordBatch | pa.Table) -> list[Any]:
    try:
        return [_without_nulls(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    except UnicodeDecodeError as error:
        if table.num_rows > 1:
            return [row for index in range(table.num_rows) for row in _rows(table.slice(index, 1))]
        return [
            Unreadable(
                RowError("$", "not-utf8", f"the text is not UTF-8: {error.reason}", "write the file again as UTF-8"), b""
            )
        ]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(member) for member in value]
    return value
