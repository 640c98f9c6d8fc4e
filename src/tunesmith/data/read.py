"""Read examples of any format and check every row before anything is built on it.

Rows stream: bytes become values, values become turns (``formats.py``), turns are checked (``conversation.py``), and a
batch of rows goes on. Memory does not grow with the file but for what finds repeated ids: 10 bytes a row, and 30 for a
moment when new ones are sorted in. The price of streaming is that what only the whole file can tell (a mixed format,
bad rows) is an error at its end: nothing that was built from the batches may be kept before the last one has come.

Nothing is repaired. A bad row refuses the file, or with ``quarantine`` is set aside with its reasons. A row of plain
turns takes about four times what the parser alone takes; everything else goes a slower way.
"""

import difflib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jiter
import numpy as np

from tunesmith.data import formats, preference
from tunesmith.data.batch import Requests
from tunesmith.data.choices import Choices, NotTaken, Take
from tunesmith.data.conversation import check_messages, check_text, check_tools, is_plain, nearest
from tunesmith.data.csv_file import checked_delimiter
from tunesmith.data.cut_off import refuse_cut_off
from tunesmith.data.dialects import oasst
from tunesmith.data.dialects.beside import left_out
from tunesmith.data.dialects.declarations import openai_tools
from tunesmith.data.dialects.hermes import holds_tags
from tunesmith.data.dialects.trainer_info import info_beside
from tunesmith.data.dialects.turns import openai_turns
from tunesmith.data.draft import Draft
from tunesmith.data.encoding import checked_encoding
from tunesmith.data.forest import Forest
from tunesmith.data.marks import Marks
from tunesmith.data.problems import ProblemLog, RowError, Unreadable
from tunesmith.data.reasoning import Mode
from tunesmith.data.row_hash import content_hash
from tunesmith.data.source import Chunk, Rows, Source, TextOptions, chunks, find
from tunesmith.data.strict_json import MAX_LINE, diagnosed, loads
from tunesmith.data.targets import SET_ASIDE, refuse_target
from tunesmith.data.turn_order import ordered, with_way_out
from tunesmith.errors import DataError
from tunesmith.messages import Message, Tools
from tunesmith.rundir.records.check import IgnoredColumn, Reading
from tunesmith.rundir.rows import Row

NAMES = 1000  # of ignored columns that are told apart
# Messages, tools, group, kind.
Checked = tuple[list[Message], Tools, str | None, Literal["chat", "text"]]


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read.

    Attributes:
        format: one of ``formats.KINDS``, or None to tell it from the keys of the rows.
        columns: our names to the file's columns, for example ``{"prompt": "question", "completion": "answer"}``; then
            only these are read.
        group_by: column whose value holds rows together in the split.
        on_bad_row: ``refuse`` the file, or ``quarantine`` the row.
        encoding: of files of text, None to tell it.
        delimiter: between the cells of CSV files, None to tell it.
        turns: what becomes of turns that a conversation has no place for (``turn_order.py``).
        reasoning: what happens to reasoning that stands in the text of an answer (``reasoning.py``).
        take: ``chosen`` reads the good answers of preference data (``preference.py``).
        parse_template: read plain texts that hold a rendered template as the conversations in them (``rendered_text.py``).
        requests: the file that was sent to a batch whose output is read (``batch.py``).
    """

    format: str | None = None
    columns: dict[str, str] | None = None
    group_by: str | None = None
    on_bad_row: Literal["refuse", "quarantine"] = "refuse"
    encoding: str | None = None
    delimiter: str | None = None
    turns: Literal["refuse", "trim", "merge"] = "refuse"
    reasoning: Mode | None = None
    take: Take | None = None
    parse_template: bool = False
    requests: Path | None = None


AS_FOUND = ReadOptions()


class Reader:
    """Rows of a source, checked.

    Args:
        source: file, directory, hub id, or rows in memory (``memory.py``); or what was found of them.
        options: how to read.
        rejected: file for bad rows and their reasons, with ``quarantine``.
        progress: called with the number of bytes newly read from disk; they add up to ``total_bytes``.

    Attributes:
        part: of a split that is there already, of the last batch; None where its file's name says none.
        entry: the number of the path that the last batch comes from, where several were named.

    Raises:
        DataError: nothing to read there, an option that does not fit, or a file for bad rows that is none.
    """

    def __init__(
        self,
        source: Rows | Source,
        options: ReadOptions = AS_FOUND,
        rejected: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ):
        self.options = _checked_options(options)
        self.source = source if isinstance(source, Source) else find(source)
        self.total_bytes = sum(file.size() for file in self.source.files)
        self._rejected = rejected if options.on_bad_row == "quarantine" else None
        if self._rejected is not None:
            refuse_target(self._rejected, [file.path for file in self.source.files], SET_ASIDE)
        self.progress = progress
        named = options.format is not None or options.columns is not None
        self._info = None if named or len(self.source.files) != 1 else info_beside(self.source.files[0].path)
        self._columns = options.columns or (self._info.columns if self._info is not None else {})
        encoding, delimiter = options.encoding, options.delimiter
        self._text = TextOptions(
            None if encoding is None else checked_encoding(encoding),
            None if delimiter is None else checked_delimiter(delimiter),
        )
        self.source.refuse_options(self._text)
        self._start()

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Row]]:
        """Lists of up to 2,048 rows in the order of the source.

        Raises:
            DataError: after the last batch: bad rows, rows of more than one format, no rows; at once: a damaged file.
        """
        self._start()
        if self._rejected is not None:
            self._rejected.unlink(missing_ok=True)  # of an earlier reading
        mapped = {*self._columns.values()} or formats.KNOWN
        wanted = mapped | {self.options.group_by} if self.options.group_by else mapped
        try:
            for chunk in itertools.chain(chunks(self.source, wanted, self._text), self._forest.chunks()):
                self.part, self.entry, self._table_rest = chunk.part, chunk.entry, chunk.unread
                before = dict(self._kinds)
                rows = self._batch(chunk)
                self._kinds_of[chunk.entry] |= {kind for kind, count in self._kinds.items() if count != before.get(kind)}
                self._file_notes += chunk.notes
                if chunk.unread:
                    self._ignore(chunk.unread, len(chunk.items))
                if self.progress is not None and chunk.read:
                    self.progress(chunk.read)
                if rows:
                    yield rows
        finally:
            self.problems.close()
        self._finish()

    def summary(self) -> Reading:
        """What was read: all of it after the last batch, before that what came so far."""
        files = list(dict.fromkeys(file.path.name for file in self.source.files))
        return Reading(
            rows=self._rows,
            bad_rows=self.problems.total,
            problems_by_code=dict(self.problems.by_code.most_common()),
            format=next(iter(self._kinds), None),
            kinds=dict(self._kinds),
            files=tuple(files or [self.source.label]),
            ignored_columns=self._ignored(),
            left_out=dict(self._left_out),
            left_out_named=self._left_out_named,
            notes=tuple(self._notes()),
        )

    def _start(self) -> None:
        self.problems = ProblemLog(self._rejected)
        self.part: str | None = None
        self.entry = 0
        self._rows = 0
        self._blank = 0
        self._kinds: Counter[str] = Counter()
        self._kinds_of: defaultdict[int, set[str]] = defaultdict(set)  # of the rows of each path
        self._first: dict[str, str] = {}  # kind -> place of its first row
        self._unread: Counter[str] = Counter()  # name of a column that nothing reads -> rows
        self._columns_seen: set[str] = set()
        self._table_rest: tuple[str, ...] = ()  # columns of the table at hand that are not in its rows
        self._left_out: Counter[str] = Counter()  # column of a question or its answer that nothing reads -> rows
        self._left_out_named = ""  # what would read them
        self._answers: str | None = None  # what makes rows preference data
        self._seen = _Seen()
        self._marks = Marks()
        self._forest = Forest()
        self._requests: Requests | None = None  # once the first row is there
        self._choices = Choices(self.options.reasoning, self.options.take, self.options.parse_template)
        self._file_notes: list[str] = []
        self._said: Counter[str] = Counter()  # what is read as something else -> rows

    def _batch(self, chunk: Chunk) -> list[Row]:
        rows: list[Row] = []
        digests: list[bytes] = []
        plain = 0
        first_plain = ""
        from_json = jiter.from_json
        options, prefix = self.options, chunk.prefix
        simple = not self._columns and options.group_by is None and options.format in (None, "messages")
        simple = simple and self._choices.leaves_plain_rows and options.requests is None
        for number, item in zip(chunk.numbers, chunk.items, strict=True):
            place = f"{prefix} {number}"
            try:
                if type(item) is Unreadable:
                    raise item
                if type(item) is bytes:
                    # The same as strict_json.loads, without the cost of a call a row.
                    value = from_json(item, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
                    if len(item) > MAX_LINE:
                        loads(item)
                else:
                    value = item
                messages = value.get("messages") if simple and type(value) is dict and len(value) == 1 else None
                tagged = type(item) is not bytes or b"tool" in item
                if messages is not None and is_plain(messages) and not (tagged and holds_tags(messages)):
                    digest = content_hash(messages)
                    rows.append(Row(digest[:6].hex(), place, messages))
                    plain += 1
                    first_plain = first_plain or place
                else:
                    messages, tools, group, kind = self._general(value, place)
                    digest = content_hash(messages, tools, kind)
                    rows.append(Row(digest[:6].hex(), place, messages, tools, group, kind))
                digests.append(digest)
            except NotTaken:
                continue
            except (ValueError, RowError, Unreadable) as error:
                self._refuse(error, item, place)
        if plain:
            self._kinds["messages"] += plain
            self._marks.add_unmarked(plain, first_plain)
            self._first.setdefault("messages", first_plain)
        self._rows += len(rows)
        for index, repeat in enumerate(self._seen.add(digests)):
            if repeat > 1:
                rows[index] = replace(rows[index], id=f"{rows[index].id}-{repeat}")
        return rows

    def _general(self, value: Any, place: str) -> Checked:
        if not isinstance(value, dict):
            raise RowError("$", "not-object", f"expected an object, found {type(value).__name__}", 'write {"messages": [...]}')
        options, columns = self.options, self._columns
        group_by = options.group_by
        if options.requests is not None:
            self._requests = self._requests or Requests(options.requests)
            value = self._requests.joined(value)
        row = {key: member for key, member in value.items() if member is not None}
        refuse_cut_off(row, "$", columns.values())
        answers = None if columns else preference.described(row)
        if not columns and (answers is None or preference.mark_key(row)) and self._marks.add(row, place) and options.take:
            answers = "answers marked 0 or 1"
        if answers is not None:
            self._kinds["preference"] += 1
            self._first.setdefault("preference", place)
            self._answers = self._answers or answers
            used = self._choices.answer(row, answers)
            row = dict(used)
            kind = self.options.format or formats.kind_of(used)
        else:
            used = formats.rename(row, columns) if columns else row
            if self._info is not None and "conversations" in used:
                used = {**used, "conversations": self._info.turns(used["conversations"])}
            if columns:
                self._columns_seen.update(theirs for theirs in columns.values() if theirs in row)
                self._choices.pass_over(row)
            kind = self.options.format or formats.kind_of(used)
            if kind in ("oasst", oasst.FLAT) and oasst.is_flat(used):
                self._ignore(formats.unknown_keys(used, oasst.FLAT, group_by), 1)
                self._forest.add(used, place, self.part, self.entry, group_by)
                raise NotTaken
            if kind is not None:
                self._kinds[kind] += 1
                self._first.setdefault(kind, place)
        if kind is None:
            blank = [key for key, member in value.items() if member is None]
            if blank and not columns and formats.kind_of({**row, **dict.fromkeys(blank, "")}) is not None:
                message = f"{', '.join(blank)} {'is' if len(blank) == 1 else 'are'} empty in this row"
                raise RowError(f"$.{blank[0]}", "missing-column", message, "fill the column or remove the row")
            raise formats.unknown_format({**row, **dict.fromkeys(self._table_rest)})
        unread = [columns.get(name, name) for name in formats.unknown_keys(used, kind, group_by)]
        if columns:
            unread += [name for name in row if name not in columns.values() and name != group_by]
        if unread:
            self._ignore(unread, 1)
        group = None
        if group_by is not None:
            if group_by not in row:
                message = f"no {group_by} in this row, found {', '.join(row) or 'nothing'}"
                raise RowError(f"$.{group_by}", "missing-column", f"{message:.200}", "fill the column named in data.group_by")
            cell = row[group_by]
            group = cell if isinstance(cell, str) else json.dumps(cell, sort_keys=True, default=str)
        said: set[str] = set()
        draft = formats.draft(used, kind, columns, said)
        messages, tools, is_text = _checked(draft, self.options.turns, said)
        self._said.update(said)
        try:
            messages, tools, kind_read = self._choices.settle(messages, tools, "text" if is_text else "chat", draft.whole)
        except RowError as bad:
            raise draft.located(bad) from None
        if unread and not columns and kind in formats.PAIRS:
            left = left_out(used, unread, (message["content"] for message in messages))
            self._left_out.update(left)
            self._left_out_named = self._left_out_named or (formats.naming_with(used, left) if left else "")
        return messages, tools, group, kind_read

    def _refuse(self, error: ValueError | RowError | Unreadable, item: Any, place: str) -> None:
        raw = item
        if isinstance(error, Unreadable):
            bad, raw = error.bad, error.raw
        elif isinstance(error, RowError):
            bad = error
        elif not item.strip():
            self._blank += 1
            return
        else:
            bad = diagnosed(item, str(error))
        self.problems.add(bad.at(place), raw)

    def _ignore(self, names: Iterable[str], rows: int) -> None:
        for name in names:
            self._unread[name if name in self._unread or len(self._unread) < NAMES else "(further names)"] += rows

    def _ignored(self) -> dict[str, IgnoredColumn]:
        known = {*formats.COLUMNS, *self._columns.values()}
        near = {name: difflib.get_close_matches(name[:40], known, n=1, cutoff=0.8) for name in self._unread}
        return {
            name: IgnoredColumn(rows=rows, nearest=near[name][0] if near[name] and near[name][0] != name else None)
            for name, rows in self._unread.most_common()
        }

    def _notes(self) -> list[str]:
        notes = [*self.source.all_notes(), *self._file_notes]
        notes += [self._info.note] if self._info is not None else []
        parsed = "text" if self.options.parse_template else None  # that note would not be true
        notes += [formats.NOTES[kind] for kind in self._kinds if kind in formats.NOTES and kind != parsed]
        notes += self._forest.notes()
        notes += self._requests.notes() if self._requests is not None else []
        notes += self._choices.notes()
        notes += [f"{sentence} ({rows:,} rows)" for sentence, rows in self._said.most_common()]
        for name in formats.MEDIA:
            if self._unread[name]:
                notes.append(f"{name}: {self._unread[name]:,} rows have more than text, and only their text is read")
        if self._blank:
            notes.append(f"{self._blank:,} empty lines were passed over")
        return notes

    def _finish(self) -> None:
        label = self.source.label
        self._marks.refuse(label, taken=self.options.take is not None)
        if any(len(kinds) > 1 for kinds in self._kinds_of.values()):
            kinds = ", ".join(f"{kind} {rows:,} rows (first: {self._first[kind]})" for kind, rows in self._kinds.most_common())
            hint = "keep one format in a file, or name one in data.format; rows of another are then bad"
            raise DataError(f"{label}: mixed formats: {kinds}", hint)
        if self._kinds["preference"] and self.options.take is None:
            message = f"{label}: {self._kinds['preference']:,} rows of preference data ({self._answers})"
            raise DataError(message, preference.HINT)
        if self.options.take is not None and not self._kinds["preference"]:
            message = f"{label}: no row of preference data, so data.take: {self.options.take} has nothing to take"
            raise DataError(message, "leave data.take (--take) out")
        missing = [theirs for theirs in self._columns.values() if theirs not in self._columns_seen]
        if missing and (self._rows or self._unread):
            columns = ", ".join([*self._columns_seen, *self._unread][:20])
            message = f"{label}: column {missing[0]!r} of data.columns stands in no row, found {columns}"
            raise DataError(message, f"correct the name{nearest(missing[0], self._unread)}")
        if self.problems.total and (self.options.on_bad_row == "refuse" or not self._rows):
            hint = "mend or remove these rows, or set data.on_bad_row: quarantine; nothing was written"
            raise self.problems.error(label, self._rows, hint if self._rows else self.problems.way_out())
        if not self._rows:
            if self._requests is not None:
                raise DataError(f"{label}: no row is left: {'; '.join(self._requests.notes())}", "name the file that was sent")
            if self.source.memory is not None:
                raise self.source.memory.no_rows()
            raise DataError(f"{label}: no rows, the file is empty", "expected one JSON object a line, or a table with a header")


def read_rows(source: Rows, options: ReadOptions = AS_FOUND) -> list[Row]:
    """All rows of a source at once, for files that fit into memory.

    Raises:
        DataError: as ``Reader`` and ``Reader.batches``.
    """
    return list(Reader(source, options))


class _Seen:
    """How often a digest has come. Old ones are a sorted array of 8 bytes each, the last ones a set."""

    def __init__(self) -> None:
        self._old = np.empty(0, np.uint64)
        self._new: set[int] = set()
        self._repeated: Counter[int] = Counter()

    def add(self, digests: list[bytes]) -> list[int]:
        """For each digest in turn: the how manieth it is, from 1. Only the 6 bytes that make an id are compared."""
        wanted = np.frombuffer(b"".join(digests), ">u8")[::2].astype(np.uint64) >> np.uint64(16)
        keys = wanted.tolist()
        at = np.searchsorted(self._old, wanted)
        known = (np.append(self._old, 0)[at] == wanted) & (at < len(self._old)) if len(keys) else at
        counts = []
        for key, old in zip(keys, known.tolist(), strict=True):
            if old or key in self._new:
                self._repeated[key] += 1
                counts.append(self._repeated[key] + 1)
            else:
                self._new.add(key)
                counts.append(1)
        # Merging costs a sort of everything, so it waits until there is an eighth as much again.
        if len(self._new) > max(65_536, len(self._old) // 8):
            self._old = np.sort(np.concatenate([self._old, np.fromiter(self._new, np.uint64, len(self._new))]), kind="stable")
            self._new = set()
        return counts


def _checked(draft: Draft, order: Literal["refuse", "trim", "merge"], said: set[str]) -> tuple[list[Message], Tools, bool]:
    """Turns and tools of a row, and whether it is a plain text; problems are told where they stand in the file."""
    try:
        if draft.text:
            return check_text(draft.messages), None, True
        if is_plain(draft.messages) and not holds_tags(draft.messages):
            return draft.messages, check_tools(openai_tools(draft.tools, draft.tools_path, said), draft.tools_path), False
        turns = openai_turns(draft, said)
    except RowError as bad:
        raise draft.located(bad) from None
    turns = turns if order == "refuse" else ordered(turns, order, said)
    try:
        messages = check_messages(turns.messages)
    except RowError as bad:
        raise turns.located(with_way_out(bad, turns)) from None
    return messages, check_tools(openai_tools(turns.tools, turns.tools_path, said), turns.tools_path), False


def _checked_options(options: ReadOptions) -> ReadOptions:
    if options.format is not None and options.format not in formats.KINDS:
        message = f"unknown format {options.format!r}{nearest(options.format, formats.KINDS)}"
        raise DataError(message, f"data.format is one of {', '.join(formats.KINDS)}")
    for name in options.columns or {}:
        if name not in formats.COLUMNS:
            message = f"unknown name {name!r} in data.columns{nearest(name, formats.COLUMNS)}"
            raise DataError(message, f"the names are {', '.join(formats.COLUMNS)}")
    if options.columns and options.take is not None:
        message = "data.take is told from the names of the columns, and data.columns says already which are read"
        raise DataError(message, "leave one of the two out (--take, --column)")
    return options
