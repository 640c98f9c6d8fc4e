"""Rows of Parquet and Arrow files, of the hub and of tables in memory, batch by batch.

Only the columns that the program knows or was told of are read: a table of conversations may carry images. A table has
a null wherever a row lacks a column, and a struct has a null wherever one turn lacks a key that another has, so nulls
are dropped at every depth; a table cannot say ``{"unit": null}``, which is why this loses nothing that was there. Cells of
Arrow's JSON type are text that says what it says: they are parsed strictly, nulls and all. Numbers of a class label are read as
the names that the table's metadata give them.
"""

import json
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.chunk import Chunk
from tunesmith.data.dialects.column_names import naming_hint
from tunesmith.data.parts import part_of
from tunesmith.data.problems import RowError, Unreadable
from tunesmith.data.strict_json import loads_text
from tunesmith.errors import DataError, first_line

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
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise DataError(f"{path}: not a whole {kind} file ({reason:.120})", "write or copy it again") from error
    yield Chunk(prefix, range(0), [], size - read)


def hub_chunks(name: str, wanted: Set[str], splits: Sequence[str] = (), notes: list[str] | None = None) -> Iterator[Chunk]:
    """Rows of a data set that ``datasets`` loads: ``owner/name``, ``owner/name:split`` or ``owner/name:config:split``.

    Without a split it is ``train``, or the only one there is. What was downloaded stays in the user's cache.

    Args:
        splits: to read, where the id names none.
        notes: takes what a person should know.

    Raises:
        DataError: no such data set, configuration or split, or it cannot be loaded.
        ModuleNotFoundError: ``datasets`` is not installed.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    path, *rest = name.split(":")
    config = rest[0] if len(rest) == 2 else None
    known = hub_splits(name)
    if not rest and not splits and len(known) > 1 and "train" in known and notes is not None:
        notes[:] = [f"of {name} only the split train is read; there are {', '.join(known)}"]
    splits = splits or [rest[-1] if rest else "train" if "train" in known or len(known) > 1 else known[0]]
    for split in splits:
        if split not in known:
            raise DataError(f"{name}: no split {split}, found {', '.join(known)}", f"write {path}:{known[0]}")
        try:
            loaded = datasets.load_dataset(path, config, split=split).with_format("arrow")
        except (OSError, ValueError, DatasetsError) as error:
            raise _not_given(name, error) from error
        number = 1
        for table in loaded.iter(batch_size=BATCH):
            for chunk in record_chunks(table, f"{split} row", number, wanted, name):
                chunk.part = part_of(split)
                yield chunk
                number += len(chunk.items)


def hub_splits(name: str) -> list[str]:
    """Names of the splits of a data set of the hub.

    Raises:
        DataError: no such data set or configuration.
        ModuleNotFoundError: ``datasets`` is not installed.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    path, *rest = name.split(":")
    try:
        return list(datasets.get_dataset_split_names(path, rest[0] if len(rest) == 2 else None))
    except (OSError, ValueError, DatasetsError) as error:
        raise _not_given(name, error) from error


def _not_given(name: str, error: Exception) -> DataError:
    reason = first_line(error)
    hint = "check the name and the network; a file or a directory is read by its path"
    return DataError(f"{name}: no such file or directory, and the hub does not give it ({reason:.200})", hint)


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
    json_columns = [field for field in read.schema if _holds_json(field)]
    labels = {name: names for name, names in _class_labels(table.schema).items() if name in columns}
    notes = tuple(f"{name}: numbers are read as the names of their classes" for name in labels) if number == 1 else ()
    for start in range(0, table.num_rows, BATCH):
        items = [_decoded(item, json_columns, labels) for item in _rows(read.slice(start, BATCH))]
        yield Chunk(
            prefix, range(number + start, number + start + len(items)), items, 0, unread, notes=notes if start == 0 else ()
        )


def _holds_json(field: pa.Field) -> bool:
    """Whether cells of a column are, or hold, Arrow's JSON type."""
    kind = field.type
    named = (field.metadata or {}).get(b"ARROW:extension:name")
    if named == b"arrow.json" or (isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"):
        return True
    return any(_holds_json(kind.field(index)) for index in range(kind.num_fields))


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of columns that ``datasets`` wrote as numbers."""
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    try:
        features = json.loads(written)["info"]["features"]
        kinds = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    names = {name: feature.get("names") for name, feature in kinds.items() if feature.get("_type") == "ClassLabel"}
    return {name: listed for name, listed in names.items() if isinstance(listed, list)}


def _decoded(item: Any, json_columns: list[pa.Field], labels: dict[str, list[str]]) -> Any:
    """A row whose cells of JSON are values, and whose numbers of classes are names."""
    if not isinstance(item, dict):
        return item
    try:
        for field in json_columns:
            if field.name in item:
                item[field.name] = _parsed(item[field.name], field, f"$.{field.name}")
    except RowError as bad:
        return Unreadable(bad, json.dumps(item, default=str)[:200].encode())
    for name, names in labels.items():
        if isinstance(item.get(name), int):
            if 0 <= item[name] < len(names):
                item[name] = names[item[name]]
            else:
                del item[name]  # datasets writes -1 where nobody has labelled the row
    return item


def _parsed(value: Any, field: pa.Field, path: str) -> Any:
    kind = field.type
    if isinstance(value, str) and kind.num_fields == 0:
        return loads_text(value, path) if _holds_json(field) else value
    if isinstance(value, list):
        return [_parsed(member, kind.field(0), f"{path}[{index}]") for index, member in enumerate(value)]
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {name: _parsed(member, kind.field(name), f"{path}.{name}") for name, member in value.items()}
    return value


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
