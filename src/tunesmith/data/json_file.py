"""Rows of a ``.json`` file, which may be four things: an array, an object with a list, objects, or lines of JSON.

Which one it is, is read off the beginning. An array is cut into its elements by a scanner that knows only strings and
brackets, so that a file of any size is read in pieces; the elements are then parsed one by one like lines, and a fault
in one is that row's problem. Refused: parsing the file whole, which takes several times its size in memory.
"""

import itertools
import re
from collections.abc import Iterator, Set
from pathlib import Path

from tunesmith.data.parts import WORDS
from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import MAX_LINE, loads
from tunesmith.errors import DataError

# A whole string, a bracket, or the quote of a string whose end has not been read yet. Possessive: no backtracking.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
_NAMED_PART = re.compile(rb'"(?i:' + "|".join(WORDS).encode() + rb')"\s*:\s*\[')
_HOLDERS = ("data",)  # names of a column somewhere, and of the list of rows in many more files
OBJECTS = "{}: objects one after another, and not one a line"
_HINT = "mend the JSON there, or write one object a line (JSONL)"


def jsonl_rows(blocks: Iterator[bytes], path: Path, wanted: Set[str], notes: list[str]) -> tuple[str, Iterator[bytes]]:
    """What a file of lines holds: lines, or what people give that name to as well, an array or objects over several lines.

    Args:
        blocks: the file's text in pieces.
        path: for messages.
        wanted: as in ``json_rows``.
        notes: receives what it is, where it is no lines.

    Returns:
        As ``json_rows``.

    Raises:
        DataError: as ``json_rows``.
    """
    head = next(blocks, b"")
    while not head.strip() and (block := next(blocks, b"")):
        head += block
    everything = itertools.chain([head], blocks)
    first = head.lstrip()
    if first[:1] == b"[" and _is_array(first):
        notes.append(f"{path.name}: one array of rows, and not a row a line")
        return "row", _elements(everything, path, 1)
    if first.split(b"\n", 1)[0].strip() == b"{" and first[1:].lstrip()[:1] in (b'"', b"}"):
        notes.append(OBJECTS.format(path.name))
        return "row", _elements(everything, path, 0)
    return "line", everything


def _is_array(head: bytes) -> bool:
    """Whether a text that begins with a bracket is an array of objects, and not a line that holds one among other lines."""
    if head[1:].lstrip()[:1] != b"{":
        return False
    line, _, rest = head.partition(b"\n")
    return not rest.strip() or not line.rstrip().endswith(b"]")


def json_rows(
    blocks: Iterator[bytes], path: Path, wanted: Set[str], notes: list[str], list_name: str | None = None
) -> tuple[str, Iterator[bytes]]:
    """What a JSON file holds.

    Args:
        blocks: the file's text in pieces.
        path: for messages.
        wanted: names that make an object a row, and not a holder of rows.
        notes: receives what the file is, where it is no JSON as a whole.
        list_name: of the list to read in an object that holds several.

    Returns:
        ``line`` and the file's blocks where it is lines of JSON; ``row`` and the elements otherwise, one JSON text each.

    Raises:
        DataError: the brackets do not close, an element is past 8 MB, or there is no list or more than one.
    """
    if list_name is not None:
        return "row", _elements(blocks, path, 2, list_name)
    head = next(blocks, b"")
    while not head.strip() and (block := next(blocks, b"")):
        head += block
    if head.lstrip()[:1] != b"{":
        is_array = head.lstrip()[:1] == b"["
        everything = itertools.chain([head], blocks)
        return ("row", _elements(everything, path, 1)) if is_array else ("line", everything)
    while b"\n" not in head.lstrip() and len(head) <= MAX_LINE and (block := next(blocks, b"")):
        head += block
    first = head.lstrip().split(b"\n")[0]
    kind = _first_line(first, wanted)
    if kind == "part":
        while len(head) <= MAX_LINE and (block := next(blocks, b"")):
            head += block
        if _objects_follow(head):
            notes.append(OBJECTS.format(path.name))
            return "row", _elements(itertools.chain([head], blocks), path, 0)
        if len(head) <= MAX_LINE and _first_line(head, wanted) == "row":
            return "row", iter([head])
    everything = itertools.chain([head], blocks)
    return ("line", everything) if kind == "row" else ("row", _elements(everything, path, 2))


def _objects_follow(head: bytes) -> bool:
    """Whether the first object is whole, and another begins after it."""
    depth = 0
    for token in _TOKEN.finditer(head):
        depth += (token[0] in b"[{") - (token[0] in b"]}")
        if depth == 0:
            return head[token.end() :].lstrip()[:1] == b"{"
    return False


def list_names(blocks: Iterator[bytes], path: Path) -> list[str]:
    """Names of the lists in a file that is one object with a list for a part of a split; none in another, or a damaged one."""
    head = next(blocks, b"")
    if not head.lstrip().startswith(b"{") or not _NAMED_PART.search(head):
        return []
    scan = _Scan(path, 2, "")
    try:
        for block in itertools.chain([head], blocks):
            for _ in scan.feed(block):
                pass
        scan.finish()
    except DataError:  # which reading it will say, with its place
        return []
    return scan.names if len(set(scan.names)) == len(scan.names) else []


def _first_line(text: bytes, wanted: Set[str]) -> str:
    """``row``: an object by itself; ``holder``: an object with lists of rows; ``part``: not a whole JSON text."""
    try:
        value = loads(text)
    except RowError as bad:
        opened = closed = 0
        for token in _TOKEN.finditer(text):
            opened += token[0] in b"[{"
            closed += token[0] in b"]}"
        return "part" if bad.code in ("not-json", "line-too-long") and opened > closed else "row"
    if any(name in value and not (name in _HOLDERS and isinstance(value[name], list)) for name in wanted):
        return "row"
    return "holder" if any(isinstance(v, list) and v and isinstance(v[0], dict) for v in value.values()) else "row"


def _elements(blocks: Iterator[bytes], path: Path, base: int, list_name: str | None = None) -> Iterator[bytes]:
    """The objects of the list whose brackets open at depth ``base``: 1 for an array, 2 for a list in an object.

    Base 0 is no list: objects one after another.
    """
    scan = _Scan(path, base, list_name)
    for block in blocks:
        yield from scan.feed(block)
    scan.finish()


class _Scan:
    """Cuts a list into its objects, block by block; of several lists in an object the one of a name."""

    def __init__(self, path: Path, base: int, list_name: str | None = None):
        self.path = path
        self.base = base
        self.list_name = list_name
        self.names: list[str] = []  # of the lists
        self.key = b""  # the last string before them
        self.buffer = b""
        self.depth = 0
        self.count = 0  # objects found
        self.lists = int(base == 0)  # lists begun
        self.inside = base == 0  # between the brackets of the list
        self.start = -1  # of the object at hand
        self.after = 0  # end of the object before it
        self.position = 0

    def feed(self, block: bytes) -> Iterator[bytes]:
        """The objects that this block completes.

        Raises:
            DataError: a row past the longest line, or a quote that never ends.
        """
        self.buffer += block
        for token in _TOKEN.finditer(self.buffer, self.position):
            self.position = token.end()
            first = token[0][0]
            if first == 0x22:  # a quote
                if token.end() - token.start() == 1:
                    self.position = token.start()
                    break
                if self.depth == 1 and not self.inside:
                    self.key = token[0][1:-1]
            elif first in b"[{":
                self._open(token.start(), first)
            else:
                row = self._close(token.end())
                if row is not None:
                    yield row
        else:
            self.position = len(self.buffer)
        keep = self.start if self.start >= 0 else self.after if self.inside else self.position
        if len(self.buffer) - keep > MAX_LINE:
            raise DataError(f"{self.path}: row {self.count + 1} is past {MAX_LINE:,} bytes, or a quote is left open", _HINT)
        self.buffer = self.buffer[keep:]
        self.position -= keep
        self.after = max(self.after - keep, 0)
        self.start = 0 if self.start >= 0 else -1

    def finish(self) -> None:
        """Check that all is closed.

        Raises:
            DataError: brackets or quotes are open, or an object holds no list of rows.
        """
        if self.base == 0 and self.depth == 0:
            self._between(len(self.buffer), b"")
        if self.depth or self.buffer[self.position :].strip():
            raise DataError(f"{self.path}: the JSON ends after row {self.count} with brackets or quotes left open", _HINT)
        if not self.lists:
            raise DataError(f"{self.path}: a JSON object without a list of rows", "write an array, or one object a line")

    def _open(self, at: int, first: int) -> None:
        if self.inside and self.depth == self.base:
            self._between(at, b"," if self.count and self.base else b"")
            if first != 0x7B:
                raise DataError(f"{self.path}: row {self.count + 1} is a list, expected an object", _HINT)
            self.start = at
        self.depth += 1
        if first == 0x5B and self.depth == self.base and not self.inside:
            self.lists += 1
            self.names.append(self.key.decode("utf-8", "backslashreplace"))
            if self.list_name is not None and self.list_name != self.names[-1]:
                return
            if self.lists > 1 and self.list_name is None:
                raise DataError(
                    f"{self.path}: more than one list, expected one list of rows", "write one of them to its own file"
                )
            self.inside = True
            self.after = at + 1

    def _close(self, end: int) -> bytes | None:
        if self.depth == 0:
            raise DataError(f"{self.path}: a closing bracket too many after row {self.count}", _HINT)
        if self.inside and self.depth == self.base:
            self._between(end - 1, b"")
            self.inside = False
        self.depth -= 1
        if not self.inside or self.depth != self.base or self.start < 0:
            return None
        row = self.buffer[self.start : end]
        self.start = -1
        self.after = end
        self.count += 1
        return row

    def _between(self, end: int, expected: bytes) -> None:
        between = self.buffer[self.after : end].strip()
        if between != expected:
            text, wanted = between.decode("utf-8", "backslashreplace"), expected.decode() or "nothing"
            raise DataError(f"{self.path}: {text!r:.60} after row {self.count}, expected {wanted} and an object", _HINT)
