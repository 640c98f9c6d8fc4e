"""Rendered documents: on disk as a memory-mapped Arrow file, in training as packs.

The file is Arrow's IPC file format, uncompressed: whatever speaks Arrow can read it, and the system pages in what a
pack touches and drops it again, so the data may be larger than memory. A row is one document, or one for each of its supervised
turns, side by side (``chat/as_asked.py``); ids of rows are unique, so neighbours with one id are documents of one row. A line a
document:

    row         string        id of the row
    ids         list<int32>   its tokens
    supervised  list<int32>   its supervised spans: start, end, start, end, ... (end excluded), ascending

Spans and not flags: a document has a handful of them, so counting what is supervised reads next to nothing. Every
record batch carries the CRC-32 of its columns. It is checked when a file comes from the cache, where it may have lain for
months; the file of the run directory is opened at once, and only its footer tells that it is whole.

Rendered tokens follow from rows, template and tokenizer alone. ``cached_tokens`` keeps them under the hash of the three
and hard-links them into run directories, so runs that differ in anything else tokenise nothing and store nothing twice.
Nothing in the cache is ever needed: it may be deleted at any time, and only deleting makes it smaller.

A pack is one row of T tokens: documents one after another, positions restarting at each, who sees whom in ``spans``.
Documents that begin alike may hold their beginning once (``train/prefix.py``). The positions that predict are those whose
*next* token is supervised; the last token of a document predicts nothing.

Shape suffixes: T tokens, N rows (positions that predict).
"""

import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from tunesmith import hardware
from tunesmith.errors import RunError
from tunesmith.kernels.attention import Span

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        pa.field("row", pa.string(), nullable=False),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("supervised", pa.list_(pa.int32()), nullable=False),
    ],
    metadata={"tunesmith": "documents 1"},
)
BATCH_ROWS, BATCH_TOKENS = 4096, 1 << 22  # a record batch closes with whichever comes first: 16 MB of tokens

TokenList = Sequence[int] | np.ndarray
RenderedRow = tuple[str, TokenList, TokenList]  # row id, token ids, and 1 or 0 (supervised or not) for each


@dataclass(frozen=True)
class Pack:
    """One micro-batch without padding.

    Attributes:
        ids_1T, position_1T: int64, shape (1, T).
        spans: which tokens see which, T of them in all.
        predict_N: positions whose next token is supervised, int64.
        target_N: that next token, int64.
    """

    ids_1T: Tensor
    position_1T: Tensor
    spans: list[Span]
    predict_N: Tensor
    target_N: Tensor

    def to(self, device: torch.device) -> "Pack":
        """The same on another device; spans are plain numbers and stay. Copies to a GPU overlap with what runs there."""
        if device == self.ids_1T.device:
            return self
        gpu = device.type == "cuda"
        ids_1T, position_1T, predict_N, target_N = (
            (tensor.pin_memory() if gpu else tensor).to(device, non_blocking=gpu)
            for tensor in (self.ids_1T, self.position_1T, self.predict_N, self.target_N)
        )
        return Pack(ids_1T, position_1T, self.spans, predict_N, target_N)


def supervised_tokens(packs: Iterable[Pack]) -> int:
    """Of packs together: what a summed loss is divided by."""
    return sum(len(pack.target_N) for pack in packs)


def pack_part(pack: Pack, rank: int, size: int) -> Pack:
    """The part of a pack that one of several processes has: an even run of its tokens, and who sees whom in the whole.

    Args:
        rank, size: of the process. A pack that is no multiple of ``size`` gets tokens that nobody sees.
    """
    tokens = pack.ids_1T.shape[1]
    missing = -tokens % size
    ids_1T, position_1T = (torch.nn.functional.pad(x, (0, missing)) for x in (pack.ids_1T, pack.position_1T))
    spans = [*pack.spans, Span(tokens, tokens + missing, tokens, tokens)] if missing else pack.spans
    own = (tokens + missing) // size
    first, end = rank * own, (rank + 1) * own
    here_N = (pack.predict_N >= first) & (pack.predict_N < end)
    return Pack(ids_1T[:, first:end], position_1T[:, first:end], spans, pack.predict_N[here_N] - first, pack.target_N[here_N])


class Lists(NamedTuple):
    """Lists of numbers one after another: list n is ``values[offsets[n] : offsets[n + 1]]``."""

    offsets: np.ndarray
    values: np.ndarray


class Documents:
    """Token ids and supervised spans of many documents; nothing of them is copied before it is packed.

    Attributes:
        lengths: tokens of each document, int64.
        row_sizes: documents of each row, int64.
        supervised_tokens: how many of them are supervised, all documents together.
    """

    def __init__(self, batches: list[pa.RecordBatch]):
        self._batches = batches
        self._ids = [_lists(batch, "ids") for batch in batches]
        self._spans = [_lists(batch, "supervised") for batch in batches]
        self._first = np.cumsum([0, *(batch.num_rows for batch in batches)])  # document that a batch begins with
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets) for offsets, _ in self._ids)])
        self.row_sizes = _row_sizes(batches)
        self._row_ends = np.cumsum(self.row_sizes)
        self.supervised_tokens = sum(int(spans[1::2].sum() - spans[::2].sum()) for _, spans in self._spans)

    @classmethod
    def open(cls, path: Path) -> "Documents":
        """Map a file of documents into memory.

        Raises:
            RunError: the render stage has not been run, or the file is damaged.
        """
        if not path.exists():
            raise RunError(f"{path}: no rendered documents", "run: tunesmith render RUN")
        try:
            return cls([batch for batch, _ in _batches(pa.memory_map(str(path)))])
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{path}: damaged: {error}", "delete it and run: tunesmith render RUN") from error

    def joined(self, other: "Documents") -> "Documents":
        """These documents and then those of another."""
        return Documents([*self._batches, *other._batches])

    @property
    def rows(self) -> int:
        """How many rows they are of."""
        return len(self.row_sizes)

    def row_number(self, document: int) -> int:
        """Which row a document is of."""
        return int(np.searchsorted(self._row_ends, document, side="right"))

    def first(self, count: int) -> "Documents":
        """So many of the first documents."""
        batches: list[pa.RecordBatch] = []
        for batch in self._batches:
            batches.append(batch.slice(0, count))
            count -= batches[-1].num_rows
        return Documents([pa.record_batch(batch.to_pydict(), schema=SCHEMA) for batch in batches if batch.num_rows])

    def __len__(self) -> int:
        return int(self._first[-1])

    def row_id(self, document: int) -> str:
        """Row id of one document."""
        batch, index = self._position(document)
        return self._batches[batch].column("row")[index].as_py()

    def ids(self, document: int) -> np.ndarray:
        """Token ids of a document, int32, not to be written to."""
        return _element(self._ids, *self._position(document))

    def spans(self, document: int) -> np.ndarray:
        """Supervised spans of a document, int32, shape (spans, 2): start and end (excluded)."""
        return _element(self._spans, *self._position(document)).reshape(-1, 2)

    def batches(self) -> Iterator[tuple[int, Lists, Lists]]:
        """For whoever looks at all: first document, token ids and supervised spans of each record batch, as views."""
        for number, (ids, spans) in enumerate(zip(self._ids, self._spans, strict=True)):
            yield int(self._first[number]), ids, spans

    def supervised_counts(self, first: int, count: int) -> list[int]:
        """How often each of ``count`` tokens from id ``first`` on is supervised, and so predicted in training."""
        counts = np.zeros(count, np.int64)
        for _, ids, spans in self.batches():
            marks = np.zeros(len(ids.values) + 1, np.int32)
            begins = np.repeat(ids.offsets[:-1], np.diff(spans.offsets) // 2)  # of the document of each span
            np.add.at(marks, begins + spans.values[::2], 1)
            np.add.at(marks, begins + spans.values[1::2], -1)
            values = ids.values[np.cumsum(marks[:-1]) > 0]
            counts += np.bincount(values[(values >= first) & (values < first + count)] - first, minlength=count)
        return counts.tolist()

    def _position(self, document: int) -> tuple[int, int]:
        assert 0 <= document < len(self), f"document {document} of {len(self)}"
        batch = int(np.searchsorted(self._first, document, side="right")) - 1
        return batch, document - int(self._first[batch])


def make_documents(rendered: Iterable[tuple[TokenList, TokenList]], row_sizes: Sequence[int] | None = None) -> Documents:
    """Documents in memory, from pairs of (ids, supervised); the number of a row is its id.

    Args:
        row_sizes: documents of each row; None: one each.
    """
    pairs = list(rendered)
    sizes = [1] * len(pairs) if row_sizes is None else row_sizes
    numbers = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    rows = [(number, ids, supervised) for number, (ids, supervised) in zip(numbers, pairs, strict=True)]
    return Documents([_record_batch(rows)] if rows else [])


def make_pack(documents: Documents, chosen: Sequence[int]) -> Pack:
    """The chosen documents as one micro-batch, each whole."""
    return make_shared_pack(documents, [((document,), (0,)) for document in chosen])


def make_shared_pack(documents: Documents, groups: Iterable[tuple[Sequence[int], Sequence[int]]], multiple: int = 1) -> Pack:
    """Groups of documents as one micro-batch: the first tokens of a group once, then the rest of each document.

    Args:
        groups: documents, and for each how many of its first tokens are not its own: they are the first ones of the document
            that shares most, and none of them predicts a supervised one.
        multiple: that the number of tokens is made by a document of nothing, token 0 again and again, unsupervised.
    """
    parts: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predict: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    spans: list[Span] = []
    at = 0
    for members, shares in groups:
        prefix, most = at, max(shares)
        if most:
            parts.append(documents.ids(members[shares.index(most)])[:most])
            positions.append(np.arange(most))
            spans.append(Span(at, at + most, at, at))
            at += most
        for document, shared in zip(members, shares, strict=True):
            ids = documents.ids(document)
            for a, b in documents.spans(document).tolist():
                first = max(a, 1)
                predict.append(np.arange(first - 1, b - 1) - shared + at)
                targets.append(ids[first:b])
            parts.append(ids[shared:])
            positions.append(np.arange(shared, len(ids)))
            spans.append(Span(at, at + len(ids) - shared, prefix if shared else at, prefix + shared if shared else at))
            at += len(ids) - shared
    if missing := -at % multiple:
        parts.append(np.zeros(missing, np.int64))
        positions.append(np.arange(missing))
        spans.append(Span(at, at + missing, at, at))
    nothing = np.zeros(0, np.int64)
    ids_T, position_T, predict_N, target_N = (
        torch.from_numpy(np.concatenate([nothing, *arrays], dtype=np.int64)) for arrays in (parts, positions, predict, targets)
    )
    return Pack(ids_T[None], position_T[None], spans, predict_N, target_N)


class DocumentWriter:
    """Write a file of documents as they are rendered, whole or not at all.

    A context manager. The file takes its name when the block ends well, and vanishes when it does not. At most one
    record batch is held in memory.

    Raises:
        RunError: the place cannot be written to.
    """

    def __init__(self, path: Path):
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two runs may fill one cache
        self._rows: list[RenderedRow] = []
        self._tokens = 0

    def __enter__(self) -> "DocumentWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._writer = pa.ipc.new_file(self._file, SCHEMA)
        return self

    def add(self, rows: Iterable[RenderedRow]) -> None:
        """Append documents: row id, token ids (at least one), and for each token whether it is supervised."""
        for row in rows:
            self._rows.append(row)
            self._tokens += len(row[1])
            if len(self._rows) >= BATCH_ROWS or self._tokens >= BATCH_TOKENS:
                self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                self._close()
                self._temporary.replace(self.path)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            batch = _record_batch(self._rows)
            try:
                self._writer.write_batch(batch, custom_metadata={"crc32": f"{_crc32(batch):08x}"})
            except OSError as error:
                raise _unwritable(self.path, error) from error
            self._rows, self._tokens = [], 0

    def _close(self) -> None:
        try:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error


def cached_tokens(key: str, target: Path, make: Callable[[Path], None]) -> bool:
    """Put the documents of ``key`` at ``target``: from the cache, else by ``make``, which fills the cache too.

    ``target`` is a hard link to the file in the cache, or a copy where that lies on another file system. Both are
    replaced, never written to.

    Args:
        key: hash of all that the tokens follow from: rows, template, tokenizer, instruction.
        target: where the run directory wants them.
        make: writes the documents to the path given, with ``DocumentWriter``.

    Returns:
        Whether they were there already and nothing was made.

    Raises:
        RunError: cache or run directory cannot be written to.
    """
    cached = hardware.cache_dir() / "tokens" / f"{key}.arrow"
    is_cached = cached.exists()
    if is_cached and (damage := _damage(cached)):
        logger.warning(f"{cached}: damaged ({damage}); making it again")
        is_cached = False
    if not is_cached:
        make(cached)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(cached)
        except OSError:  # another device, or a file system without links
            shutil.copyfile(cached, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # rename does nothing where both names are one file already
    except OSError as error:
        raise _unwritable(target, error) from error
    return is_cached


def _record_batch(rows: list[RenderedRow]) -> pa.RecordBatch:
    lengths = np.array([len(ids) for _, ids, _ in rows])
    assert lengths.all(), "a document without tokens"
    assert all(len(ids) == len(supervised) for _, ids, supervised in rows), "not one flag a token"
    ids = np.concatenate([_as_array(ids, np.int32) for _, ids, _ in rows], dtype=np.int32, casting="same_kind")
    # Flags of all documents with one 0 before and after each: a span begins where 0 turns to 1 and ends where 1 turns to 0.
    starts = np.cumsum(lengths + 1) - lengths
    flags = np.zeros(int(lengths.sum()) + len(rows) + 1, np.int8)
    for start, (_, _, supervised) in zip(starts.tolist(), rows, strict=True):
        flags[start : start + len(supervised)] = _as_array(supervised, np.int8)
    assert flags.min() >= 0 and flags.max() <= 1, "a flag that is neither 0 nor 1"
    turns = np.diff(flags)
    begins, ends = np.flatnonzero(turns == 1) + 1, np.flatnonzero(turns == -1) + 1
    document = np.searchsorted(starts, begins, side="right") - 1
    spans = np.stack([begins - starts[document], ends - starts[document]], axis=1).astype(np.int32)
    columns = [
        pa.array([row_id for row_id, _, _ in rows], pa.string()),
        _list_array(lengths, ids),
        _list_array(2 * np.bincount(document, minlength=len(rows)), spans.ravel()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _as_array(values: TokenList, dtype: type[np.int32] | type[np.int8]) -> np.ndarray:
    """A list as numbers; half the time of ``np.asarray``, which looks at every value twice."""
    if isinstance(values, np.ndarray):
        return values
    return np.frombuffer(bytes(values), np.int8) if dtype is np.int8 else np.fromiter(values, dtype, len(values))


def _row_sizes(batches: list[pa.RecordBatch]) -> np.ndarray:
    """Documents of each row: lengths of the runs of one id."""
    begins: list[np.ndarray] = []  # of each batch: whether a document is its row's first
    before = None
    for batch in batches:
        ids = batch.column("row")
        follows = pc.call_function("not_equal", [ids.slice(1), ids.slice(0, len(ids) - 1)]).to_numpy(zero_copy_only=False)
        begins.append(np.concatenate([[ids[0] != before], follows]))
        before = ids[-1]
    firsts = np.flatnonzero(np.concatenate([np.zeros(0, bool), *begins]))
    return np.diff(firsts, append=sum(batch.num_rows for batch in batches)).astype(np.int64)


def _list_array(lengths: np.ndarray, values: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _lists(batch: pa.RecordBatch, name: str) -> Lists:
    """A list column, as views."""
    column = batch.column(name)
    return Lists(column.offsets.to_numpy(), column.values.to_numpy())


def _element(lists: list[Lists], batch: int, index: int) -> np.ndarray:
    offsets, values = lists[batch]
    return values[offsets[index] : offsets[index + 1]]


def _batches(file: pa.NativeFile) -> Iterable[tuple[pa.RecordBatch, dict[bytes, bytes]]]:
    """Record batches of a file and their metadata. Raises pyarrow's errors where it is not a whole file of ours."""
    reader = pa.ipc.open_file(file)
    if not reader.schema.equals(SCHEMA, check_metadata=True):
        raise pa.ArrowInvalid("not a file of rendered documents")
    for number in range(reader.num_record_batches):
        batch, metadata = reader.get_batch_with_custom_metadata(number)
        yield batch, dict(metadata or {})


def _crc32(batch: pa.RecordBatch) -> int:
    crc = 0
    for column in batch.columns:
        for buffer in column.buffers():
            crc = crc if buffer is None else zlib.crc32(buffer, crc)
    return crc


def _damage(path: Path) -> str:
    """What is wrong with a cached file, nothing if it is whole. Reads all of it, one record batch at a time."""
    try:
        for number, (batch, metadata) in enumerate(_batches(pa.OSFile(str(path)))):
            if metadata.get(b"crc32") != f"{_crc32(batch):08x}".encode():
                return f"record batch {number} has another checksum"
    except (pa.ArrowException, OSError) as error:
        return str(error)
    return ""


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written: {error.strerror or error}", "free space, or mend the permissions")
