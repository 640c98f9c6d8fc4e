"""Rows that a program has in its hands: a list of dictionaries, a ``datasets.Dataset``, a table of Arrow, pandas or polars.

They are read as the file that they would be. A dictionary becomes its line of JSON and goes through the strict reader of lines,
so that a report cannot depend on where the rows stood, and ``ts.Run`` writes these very lines into its directory. A table goes
through the reader of Parquet and Arrow files, nulls dropped, unknown columns left alone, and is written as Arrow. Scalars and
arrays of numpy are the plain values that a table would give; what JSON cannot say (NaN, dates, bytes, objects) makes its row a
bad one with place, path and hint. Refused: ``default=str``, which trains on the text of whatever came; dictionaries that are
read as they are, a second reader that agrees with the first by luck. Cost: 7 us a row of 300 letters.

Nothing here imports ``datasets``, pandas or polars: whoever has such an object has imported them.
"""

import json
import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa

from tunesmith.data.chunk import CHUNK_ROWS, Chunk
from tunesmith.data.problems import ProblemLog, RowError, Unreadable
from tunesmith.data.tables import BATCH, record_chunks
from tunesmith.errors import DataError
from tunesmith.rundir.atomic import writing_file

MAX_DEPTH = 200  # as the reader of lines
PLAIN_KINDS = "biufUO"  # of numpy: a date of it would become a count of nanoseconds
SHOWN = 200  # letters of a bad row
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
EXPECTED = "expected a path, a list of dictionaries, a datasets.Dataset or a table"


@runtime_checkable
class ArrowStream(Protocol):
    """A table by Arrow's protocol for Python: of pyarrow, pandas (2.2), polars, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A capsule that holds its batches."""
        ...


# What every verb takes as rows. Of an iterable each item is a dictionary; a Dataset says of its own only that they may be.
Rows: TypeAlias = str | Path | Iterable[Any] | ArrowStream


@dataclass(frozen=True, kw_only=True)
class RowsInMemory:
    """Rows that are objects; they can be read again.

    Attributes:
        label: what a person calls them: ``list of 300 rows``.
        values: one object a row; None for a table.
        tables: begins a table's pieces anew; None for a list.
    """

    label: str
    values: list[Any] | None = None
    tables: Callable[[], Iterable[pa.Table | pa.RecordBatch]] | None = None

    @property
    def suffix(self) -> str:
        """Of the file that they become."""
        return ".jsonl" if self.tables is None else ".arrow"

    def chunks(self, wanted: Set[str]) -> Iterator[Chunk]:
        """All rows, numbered from 1.

        Args:
            wanted: names of the columns of a table to read.

        Raises:
            DataError: a table without any of them, or one that Arrow cannot read.
        """
        values = self.values or []
        for start in range(0, len(values), CHUNK_ROWS):
            items = [_line(value) for value in values[start : start + CHUNK_ROWS]]
            yield Chunk("row", range(start + 1, start + 1 + len(items)), items, 0)
        number = 1
        for table in self._pieces():
            for chunk in record_chunks(table, "row", number, wanted, self.label):
                yield chunk
                number += len(chunk.items)

    def refuse_bad(self) -> None:
        """Refuse what cannot become a file.

        Raises:
            DataError: no rows, values that JSON has not, or a table that Arrow cannot read.
        """
        rows = 0
        problems = ProblemLog(None)
        for number, value in enumerate(self.values or [], start=1):
            line = _line(value)
            if isinstance(line, Unreadable):
                problems.add(line.bad.at(f"row {number}"), line.raw)
            else:
                rows += 1
        if problems.total:
            raise problems.error(self.label, rows, "mend or leave out these rows; nothing was written")
        if not rows and not any(table.num_rows for table in self._pieces()):
            raise self.no_rows()

    def write(self, path: Path) -> None:
        """Write the file that they would be, whole or not at all; ``refuse_bad`` comes first.

        Raises:
            DataError: a table that Arrow cannot write.
        """
        with writing_file(path) as file:
            if self.values is not None:
                file.writelines(line + b"\n" for line in map(_line, self.values) if isinstance(line, bytes))
                return
            pieces = self._pieces()
            first = next(pieces)
            with _arrow_faults(self.label), pa.ipc.new_stream(file, first.schema) as writer:
                for piece in chain([first], pieces):
                    writer.write(piece)

    def no_rows(self) -> DataError:
        """There is nothing in them."""
        return DataError(f"{self.label}: there are no rows", 'give some, such as [{"prompt": "...", "completion": "..."}]')

    def _pieces(self) -> Iterator[pa.Table | pa.RecordBatch]:
        if self.tables is not None:
            with _arrow_faults(self.label):
                yield from self.tables()


def rows_in_memory(rows: Iterable[Any] | ArrowStream) -> RowsInMemory:
    """Objects as rows.

    Raises:
        DataError: they are not rows, or a table that Arrow cannot read.
    """
    name = type(rows).__name__
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        return _data_set(rows, isinstance(rows, datasets.IterableDataset))
    if isinstance(rows, Mapping):
        keys = ", ".join(map(repr, rows)) or "nothing"
        raise DataError(f"{EXPECTED}, found one {name} of {keys:.200}", _mapping_hint(rows))
    if isinstance(rows, ArrowStream):
        with _arrow_faults(name):
            table = pa.table(rows)
        return RowsInMemory(label=f"{name} of {table.num_rows:,} rows", tables=lambda: [table])
    if isinstance(rows, bytes | bytearray | set | frozenset) or not isinstance(rows, Iterable):
        raise DataError(f"{EXPECTED}, found {name}", "a path is a str or a pathlib.Path")
    values = list(rows)  # a generator gives them once, and reading may begin again
    return RowsInMemory(label=f"{name} of {len(values):,} rows", values=values)


def _data_set(rows: Any, is_stream: bool) -> RowsInMemory:
    if not is_stream and rows.format["type"] == "custom":
        hint = "apply it with .map(...), or take it off with .reset_format()"
        raise DataError("Dataset: it has a transform (set_transform), which reading would pass over", hint)
    pieces = rows.with_format("arrow")
    size = "" if is_stream else f" of {len(rows):,} rows"
    return RowsInMemory(label=f"{type(rows).__name__}{size}", tables=lambda: pieces.iter(batch_size=BATCH))


def _mapping_hint(rows: Mapping[Any, Any]) -> str:
    if all(type(part).__name__.endswith("Dataset") for part in rows.values()) and rows:
        return f"name one of its splits: data[{next(iter(rows), 'train')!r}]"
    if rows and all(isinstance(column, list) for column in rows.values()) and "messages" not in rows:
        return "columns make a table: datasets.Dataset.from_dict(rows), or pyarrow.table(rows)"
    return "one row is a list of one: [row]"


@contextmanager
def _arrow_faults(label: str) -> Generator[None]:
    try:
        yield
    except pa.ArrowException as error:
        reason = "; ".join(map(str, error.args)) or type(error).__name__
        hint = "give every column one type, or give a list of dictionaries: DataFrame.to_dict('records'), Dataset.to_list()"
        raise DataError(f"{label}: no table of Arrow ({reason:.200})", hint) from error


def _line(row: object) -> bytes | Unreadable:
    """The line of JSON that a row would be in a file, or what is wrong with it."""
    try:
        if not isinstance(row, Mapping):
            raise _no_row(row)
        value = _plain(row, "$", 0)
        try:
            return _encode(value).encode()
        except UnicodeEncodeError:
            return json.dumps(value).encode()  # half of a surrogate pair, which the reader of lines names
        except ValueError as error:
            raise RowError("$", "number-too-long", str(error), "write it as a string") from None
    except RowError as bad:
        return Unreadable(bad, _excerpt(row).encode("utf-8", "backslashreplace"))


def _excerpt(row: object) -> str:
    """The beginning of a row, for people."""
    try:
        return repr(row)[:SHOWN]
    except ValueError:  # a whole number of more than 4,300 digits
        return f"<{type(row).__name__}>"


def _no_row(row: object) -> RowError:
    hint = 'write {"messages": [...]}'
    if isinstance(row, str):
        hint = 'write {"text": ...} for a text; of paths, give one, or their directory'
    elif isinstance(row, Path):
        hint = "give one path, or the directory of these files"
    return RowError("$", "not-object", f"expected a dictionary, found {type(row).__name__}", hint)


def _plain(value: Any, path: str, depth: int) -> Any:
    """A value in the types of JSON; its own path is named where it has none."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        hint = "write None, a number or a string; pandas writes NaN where a cell is empty"
        raise RowError(path, "not-finite", f"{value} is not JSON", hint)
    if depth > MAX_DEPTH:
        raise RowError("$", "too-deep", f"nested deeper than {MAX_DEPTH}", "flatten it; a row is a handful of levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                message = f"the key {key!r:.40} is {type(key).__name__}, expected text"
                raise RowError(path, "not-json", message, "write str(key)")
        return {key: _plain(member, f"{path}.{key}", depth + 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member, f"{path}[{index}]", depth + 1) for index, member in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in PLAIN_KINDS:
        return _plain(value.tolist(), path, depth + 1)
    hint = "write it as text or number, or leave the key out"
    raise RowError(path, "not-json", f"{type(value).__name__} is no JSON type", hint)
