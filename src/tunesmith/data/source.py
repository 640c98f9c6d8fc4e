"""Where rows come from: files of any format, directories, the hub, memory; read in pieces whatever their size.

What comes out are chunks of raw rows: bytes of one JSON text each (parsed by the reader, where it is fast), or values
where the file is a table. Nothing here knows what a row means. No file is held in memory: lines and array elements past
8 MB are not held either, tables come in batches (``tables.py``). Refused: reading everything through ``datasets``, which
guesses a schema from the first rows, fills what others lack, and tells a bad line without its number.

A fault of a row is one row's problem. A fault of a file (a gzip cut short, a Parquet footer that is not there, JSON
whose brackets do not close) ends the reading whatever ``on_bad_row`` says: what is lost behind it cannot be counted.
"""

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data import compressed
from tunesmith.data.chunk import CHUNK_ROWS, Chunk, gathered
from tunesmith.data.csv_file import csv_rows
from tunesmith.data.encoding import as_utf8, byte_encoding
from tunesmith.data.excel import excel_rows
from tunesmith.data.formats import KNOWN
from tunesmith.data.json_file import json_rows, jsonl_rows, list_names
from tunesmith.data.memory import Rows, RowsInMemory, rows_in_memory
from tunesmith.data.parts import is_split, listed, part_of
from tunesmith.data.problems import RowError, Unreadable
from tunesmith.data.strict_json import MAX_LINE, loads, too_long
from tunesmith.data.tables import hub_chunks, table_chunks
from tunesmith.errors import DataError
from tunesmith.formatting import repeated
from tunesmith.recipe import is_below_folder

# A block, its lines and their values should stay in the processor's cache: 1 MB at a time was a tenth slower.
BLOCK = 1 << 18
SUFFIXES = {
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"},
    **{".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".xlsx": "excel"},
}
_TABLES = ("parquet", "arrow", "excel")  # that are not read as a stream of text
# What datasets.save_to_disk and hub downloads put beside the rows.
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
SIDECAR = 1 << 20  # bytes up to which a .json file is looked at for being none of rows
_HUB = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+){0,2}")
HUB_ID = "a hub id reads owner/name:split"
_KNOWN = f"{', '.join(SUFFIXES)}; {', '.join(compressed.SUFFIXES)} and .zip of the text ones"


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How files of text are read.

    Attributes:
        encoding: of the text; None to tell it.
        delimiter: between the cells of a table; None to tell it.
    """

    encoding: str | None = None
    delimiter: str | None = None


AS_TOLD = TextOptions()


@dataclass(frozen=True, slots=True)
class File:
    """One file of rows, or one list of a JSON file.

    Attributes:
        path: of the file.
        name: that it has in places, empty for a single file.
        format: by its suffix.
        part: of a split, where its name says one.
        list_name: the list of a JSON object that is read.
    """

    path: Path
    name: str
    format: str
    part: str | None = None
    list_name: str | None = None

    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Source:
    """What somebody named as rows: files, a data set of the hub, rows in memory, or several of these.

    Attributes:
        label: its name for people.
        files: of rows, those of all members.
        hub: id of a data set.
        splits: of the data set to read; by default the one of its id, ``train``, or its only one.
        memory: rows that are objects.
        members: what several paths name, in their order.
        given: whether rows stay in the part that their file or split names.
        notes: what a person should know of it.
    """

    label: str
    files: list[File] = field(default_factory=list)
    hub: str | None = None
    memory: RowsInMemory | None = None
    notes: list[str] = field(default_factory=list)
    splits: tuple[str, ...] = ()
    members: tuple["Source", ...] = ()

    given: bool = False

    @property
    def named_parts(self) -> list[tuple[str | None, str]]:
        """The part and the name of every file or split of the hub."""
        splits = [(part_of(split), f"{source.hub}:{split}") for source in self.members or (self,) for split in source.splits]
        return [(file.part, file.name or file.path.name) for file in self.files] + splits

    def all_notes(self) -> list[str]:
        """What a person should know of it and of its members."""
        notes = [note for source in (self, *self.members) for note in source.notes]
        if self.given:
            notes.append(f"the parts are those that are there: {listed(self.named_parts)}")
        elif is_split(part for part, _ in self.named_parts):
            notes.append(f"these rows are split already, and read together here: {listed(self.named_parts)}")
        return notes

    def refuse_options(self, options: TextOptions) -> None:
        """Refuse options that nothing here would read.

        Raises:
            DataError: an encoding without a file of text, or a separator without a table of separated values.
        """
        formats = {file.format for file in self.files}
        if options.delimiter is not None and not formats & {"csv", "tsv"}:
            raise DataError(
                f"{self.label}: no CSV or TSV file, and a delimiter is given", "leave out data.delimiter (--delimiter)"
            )
        if options.encoding is not None and not formats - {*_TABLES}:
            raise DataError(f"{self.label}: no file of text, and an encoding is given", "leave out data.encoding (--encoding)")


def find(source: Rows) -> Source:
    """The files behind a path, a hub id where no such path is, or rows in memory.

    Raises:
        DataError: nothing there, or nothing that can be read.
    """
    if not isinstance(source, str | Path):
        memory = rows_in_memory(source)
        return Source(memory.label, memory=memory)
    if not str(source):
        raise DataError("the path of the rows is empty", "name a file, a directory or a hub id")
    path = Path(source)
    if path.is_dir():
        return _directory(path)
    if path.exists():
        if not path.is_file():
            raise DataError(
                f"{path}: is no regular file, and rows are read more than once", "save them to a file, and name that"
            )
        kind = _format(path)
        if kind is None:
            hint = "save the rows as JSONL or CSV: one example a row, with what is asked and what is answered"
            raise DataError(f"{path}: cannot tell the format from the name, known are {_KNOWN}", hint)
        notes: list[str] = []
        files = _lists([File(path, "", kind)], notes)
        return Source(str(path), files, notes=notes)
    if is_hub_id(source) and not is_below_folder(Path(), str(source)):
        return Source(str(source), hub=str(source))
    raise DataError(f"{path}: no such file", f"it is looked for from {Path.cwd()}; {HUB_ID}")


def find_all(paths: Sequence[str]) -> Source:
    """What several paths name, as one source; places name the file.

    Raises:
        DataError: a path that is named twice, or as ``find``.
    """
    if twice := repeated(paths):
        hint = "name it once; {path: ..., weight: 2} trains on its rows twice"
        raise DataError(f"data.path: {twice[0]} is named twice", hint)
    names = [Path(path).name for path in paths]
    members: list[Source] = []
    for path, name in zip(paths, names, strict=True):
        found = find(path)
        prefix = name if names.count(name) == 1 else path
        part = part_of(name) if Path(path).is_file() else None
        files = [replace(file, name=f"{prefix} {file.name}".strip(), part=file.part or part) for file in found.files]
        members.append(replace(found, files=files))
    together = [file for member in members for file in member.files]
    return Source(", ".join(paths), together, members=tuple(members))


def is_hub_id(source: str | Path) -> bool:
    """Whether it reads as one; a path that is there comes first."""
    return _HUB.fullmatch(str(source)) is not None and _format(Path(source)) is None


def chunks(source: Source, wanted: Set[str], options: TextOptions = AS_TOLD) -> Iterator[Chunk]:
    """All rows of a source.

    Args:
        source: from ``find``.
        wanted: names of the columns to read. An object in a JSON file that has one of them is a row, not a holder of rows.
        options: of files of text.

    Raises:
        DataError: a file cannot be read to its end.
    """
    if source.members:
        for number, member in enumerate(source.members):
            for chunk in chunks(member, wanted, options):
                yield replace(chunk, entry=number)
        return
    if source.hub is not None:
        yield from hub_chunks(source.hub, wanted, source.splits, source.notes)
    if source.memory is not None:
        yield from source.memory.chunks(wanted)
    for file in source.files:
        try:
            with compressed.faults(file.path):
                for chunk in _file_chunks(file, wanted, options):
                    yield replace(chunk, part=file.part)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{file.path}: cannot be read: {reason}", "check its permissions, or copy it again") from error


def _format(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == compressed.ARCHIVE and path.is_file():
        inner = SUFFIXES.get(Path(compressed.name_inside(path)).suffix.lower())
        return None if inner in _TABLES else inner
    if suffixes and suffixes[-1] in compressed.SUFFIXES:
        inner = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if inner in _TABLES else inner
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _directory(path: Path) -> Source:
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = _files_in(path, "")
    files = [file for file in files if not _is_sidecar(file, files)]
    if not files:
        # What save_to_disk writes of a DatasetDict (a folder a part), and a data set as the hub keeps it (data/).
        folders = [entry for entry in entries if entry.is_dir()]
        if is_split(part_of(folder.name) for folder in folders):
            folders = [folder for folder in folders if part_of(folder.name)]
        else:
            folders = [folder for folder in folders if folder.name == "data"]
        files = [file for folder in folders for file in _files_in(folder, f"{folder.name}/")]
    notes: list[str] = []
    files = _lists(files, notes)
    read = {file.path.name for file in files} | {file.path.parent.name for file in files if file.path.parent != path}
    skipped = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries if entry.name not in read]
    if not files:
        others = ", ".join(skipped[:10]) or "nothing"
        hint = (
            "name one of the directories below it"
            if any(name.endswith("/") for name in skipped)
            else "name the file of the rows"
        )
        raise DataError(f"{path}: no file of rows in this directory, found {others}; known are {_KNOWN}", hint)
    if skipped:
        notes.append(f"not read in {path}: {', '.join(skipped)}")
    return Source(str(path), files, notes=notes)


def _files_in(path: Path, prefix: str) -> list[File]:
    """The files of rows right in a directory; those of a folder named for a part are all of it."""
    return [
        File(entry, prefix + entry.name, kind, part_of(prefix) or part_of(entry.name))
        for entry in sorted(path.iterdir())
        if not entry.name.startswith(".") and entry.is_file() and entry.name not in METADATA
        if (kind := _format(entry)) is not None
    ]


def _is_sidecar(file: File, files: list[File]) -> bool:
    """Whether a .json file beside rows of another format is one object without a list of objects: facts about them."""
    if file.format != "json" or all(other.format == "json" for other in files) or file.size() > SIDECAR:
        return False
    try:
        value = loads(file.path.read_bytes())
    except (RowError, OSError):
        return False
    if not isinstance(value, dict) or KNOWN & value.keys():
        return False
    return not any(isinstance(member, list) and member and isinstance(member[0], dict) for member in value.values())


def _lists(files: list[File], notes: list[str]) -> list[File]:
    """Files, with a JSON object of lists such as ``train`` and ``test`` as one file a list; notes say what is not read."""
    lists: list[File] = []
    for file in files:
        names: list[str] = []
        if file.format == "json":
            with file.path.open("rb") as raw:
                names = list_names(_blocks(compressed.decompressed(raw, file.path)), file.path)
        if not is_split(map(part_of, names)):
            lists.append(file)
            continue
        lists += [
            replace(file, name=f"{file.name} {name}".strip(), part=part, list_name=name)
            for name in names
            if (part := part_of(name)) is not None
        ]
        if others := [name for name in names if part_of(name) is None]:
            notes.append(f"not read in {file.path}: the lists {', '.join(others)}")
    return lists


def _file_chunks(file: File, wanted: Set[str], options: TextOptions) -> Iterator[Chunk]:
    prefix = f"{file.name} " if file.name else ""
    if file.format in ("parquet", "arrow"):
        yield from table_chunks(file.path, file.format, f"{prefix}row", wanted)
        return
    notes: list[str] = []
    if file.format == "excel":
        for unit, numbers, items in gathered("row", excel_rows(file.path, notes)):
            yield Chunk(f"{prefix}{unit}", numbers, items, 0)
        yield Chunk(f"{prefix}row", range(0), [], file.size(), notes=tuple(notes))
        return
    encoding = options.encoding or _encoding(file, notes)
    with file.path.open("rb") as raw:
        stream = compressed.decompressed(raw, file.path)  # held here: pyarrow closes the file when it lets go of it
        before = 0
        blocks = as_utf8(_blocks(stream), file.path, encoding, notes)
        for unit, numbers, items in _text_rows(blocks, file, wanted, options, notes):
            for start in range(0, len(items), CHUNK_ROWS):
                now = raw.tell()
                part = slice(start, start + CHUNK_ROWS)
                yield Chunk(f"{prefix}{unit}", numbers[part], items[part], now - before)
                before = now
        yield Chunk(f"{prefix}line", range(0), [], file.size() - before, notes=tuple(notes))


def _encoding(file: File, notes: list[str]) -> str | None:
    """That of a table of separated values with one byte a letter; None to go by the file's first bytes."""
    if file.format not in ("csv", "tsv"):
        return None
    with file.path.open("rb") as raw:
        return byte_encoding(compressed.decompressed(raw, file.path), BLOCK, file.path, notes)


def _text_rows(
    blocks: Iterator[bytes], file: File, wanted: Set[str], options: TextOptions, notes: list[str]
) -> Iterator[tuple[str, Any, list[Any]]]:
    """(unit, numbers, items) of a text file."""
    if file.format in ("jsonl", "json"):
        if file.format == "jsonl":
            unit, texts = jsonl_rows(blocks, file.path, wanted, notes)
        else:
            unit, texts = json_rows(blocks, file.path, wanted, notes, file.list_name)
        yield from _numbered(unit, _lines(texts) if unit == "line" else ([element] for element in texts))
    else:
        usual = "," if file.format == "csv" else "\t"
        rows = csv_rows(_text_lines(blocks, file.path), file.path, usual, options.delimiter, notes)
        yield from gathered("line", rows)


def _numbered(unit: str, lists: Iterator[list[Any]]) -> Iterator[tuple[str, range, list[Any]]]:
    """Lists of rows with their numbers from 1, gathered where they are small."""
    start = 1
    gathered: list[Any] = []
    size = 0
    for items in lists:
        gathered += items
        size += len(items[-1]) if unit == "row" and isinstance(items[-1], bytes) else BLOCK
        if len(gathered) >= CHUNK_ROWS or size >= BLOCK:
            yield unit, range(start, start + len(gathered)), gathered
            start += len(gathered)
            gathered, size = [], 0
    if gathered:
        yield unit, range(start, start + len(gathered)), gathered


def _blocks(stream: Any) -> Iterator[bytes]:
    """A file in pieces."""
    while block := stream.read(BLOCK):
        yield block


def _lines(blocks: Iterator[bytes]) -> Iterator[list[Any]]:
    """Lists of lines without their line break; a line past the limit is not held, only counted."""
    tail = b""
    skipped = 0  # bytes of the long line so far
    begin = b""
    for block in blocks:
        whole: list[Any] = []
        if skipped:
            head, newline, block = block.partition(b"\n")
            skipped += len(head)
            if not newline:
                continue
            whole.append(Unreadable(too_long(skipped), begin))
            skipped = 0
        lines = (tail + block).split(b"\n")
        tail = lines.pop()
        whole += lines
        if len(tail) > MAX_LINE:
            skipped, begin, tail = len(tail), tail[:200], b""
        if whole:
            yield whole
    if skipped:
        yield [Unreadable(too_long(skipped), begin)]
    elif tail:
        yield [tail]


def _text_lines(blocks: Iterator[bytes], path: Path) -> Iterator[str]:
    """Lines with their line breaks; a byte that is not UTF-8 becomes half a surrogate pair, found cell by cell."""
    for lines in _lines(blocks):
        for line in lines:
            if isinstance(line, Unreadable):
                raise DataError(f"{path}: {line.bad.message}", line.bad.hint)
            yield line.decode("utf-8", "surrogateescape") + "\n"
