"""Contamination: training rows that share a long passage with a benchmark on which the model will be measured.

A score on questions that the model has been trained on says nothing. Texts are compared as letters and digits alone,
in lower case, so that layout, punctuation and quoting hide nothing; a shared passage of at least 50 such characters is
reported, with the ids of both sides and the words. Fifty is a convention, taken from the contamination study of
the GPT-4 technical report (OpenAI 2023, arXiv:2303.08774, appendix C), which drew three random passages of 50
characters from every item. It is short enough to catch a quoted question and long enough to be no turn of phrase;
it does not catch a paraphrase, and nothing here claims to.

We draw none at random. Every item is cut at anchors: passages of 50 bytes that begin at each 26th byte, and the last
one. A shared passage of 75 characters is at least 75 bytes long in each, so it holds an anchor whole, wherever it
begins: overlaps of 75 are found for certain, those of 50 to 74 when an anchor falls inside. Items of 20 to 49
characters are found where a row holds them whole; shorter ones ("Yes.") are in every text and are counted, not
looked for. A passage that several items share (an instruction) is looked for once and reported with the first of
them and their number: it is more likely the benchmark's boilerplate than an answer given away.

The training text is read once, eight bytes at every position as one number: a table lookup removes the positions at
which no anchor begins, a second one of sixteen bytes most others, a hash of the whole anchor all but a few.
What is left is compared byte by byte and followed in both directions to its full length, so nothing is reported that
is not there. Refused: 13-word n-grams (blind in languages without spaces, and to changed punctuation), and a rolling
hash of all windows (ten operations a byte where two do).

Cost: the normalised benchmark and 16 bytes for each 26 of it in memory; 20-30 ns a byte of training text.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tunesmith.rundir.records.check import ContaminationReport, SharedPassage
from tunesmith.rundir.rows import Row

WORD = 8  # bytes that are looked at as one number
PASSAGE = 50  # characters of a shared passage, and bytes of an anchor
CERTAIN = 75  # characters from which a shared passage is always found
STRIDE = CERTAIN - PASSAGE + 1
SHORT = 20  # characters below which an item is not looked for
TABLE_BITS = 22  # 4 MB: lookups stay in the cache
BATCH_BYTES = 1 << 20
EXCERPT = 200

_WORD_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789"
_FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz")
_DROPPED = bytes(set(range(128)) - set(_WORD_BYTES.upper()) - set(_WORD_BYTES))
_NOT_WORD = re.compile(r"[\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SECOND = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True, slots=True)
class _Anchors:
    """Distinct passages of one width.

    Attributes:
        width: bytes.
        hashes: uint64 (passages,), sorted.
        holders: for each, the items that hold it, each with the offset in its normalised text.
    """

    width: int
    hashes: np.ndarray
    holders: list[list[tuple[int, int]]]


class Contamination:
    """Holds a benchmark and takes training rows batch by batch.

    Args:
        benchmark: (id, text) of every item; the text is whatever a training row could give away (the question, or the
            question with its choices).
    """

    def __init__(self, benchmark: Iterable[tuple[str, str]]):
        items = list(benchmark)
        self._ids = [name for name, _ in items]
        self._texts = [text for _, text in items]
        self._items = [normalised(text) for text in self._texts]
        self._lengths = [len(item.decode("utf-8", "ignore")) for item in self._items]
        long, short = [], []
        for index, length in enumerate(self._lengths):
            if length >= PASSAGE:
                last = len(self._items[index]) - PASSAGE
                long += [(index, offset) for offset in {*range(0, last + 1, STRIDE), last}]
            elif length >= SHORT:
                short.append((index, 0))
        self._tables = np.zeros((2, 1 << TABLE_BITS), bool)  # of the first 8 and the first 16 bytes of any anchor
        self._anchors = [
            _anchors(self._items, places, width, self._tables) for places, width in ((long, PASSAGE), (short, SHORT))
        ]
        self._items_shared: set[int] = set()
        self._best: list[tuple[Row, tuple[int, int, int, int]]] = []
        self._rows_read = 0

    def add(self, rows: list[Row]) -> None:
        """Look through the next rows: every turn, system and tool turns included."""
        self._rows_read += len(rows)
        texts = [normalised("\n".join(_spoken(row))) for row in rows]
        start = size = 0
        for end, text in enumerate(texts, start=1):
            size += len(text)
            if size >= BATCH_BYTES or end == len(texts):
                self._search(rows[start:end], texts[start:end])
                start, size = end, 0

    def report(self, benchmark: str) -> ContaminationReport:
        """All rows that share a passage with the benchmark (by its name), longest passage first."""
        rows = [
            SharedPassage(
                row=row.id,
                place=row.place,
                item=self._ids[item],
                items=items,
                characters=characters,
                excerpt=self._excerpt(item, start, characters),
            )
            for row, (characters, item, start, items) in self._best
        ]
        return ContaminationReport(
            benchmark=benchmark,
            items=len(self._ids),
            too_short=sum(length < SHORT for length in self._lengths),
            items_found=len(self._items_shared),
            rows_read=self._rows_read,
            rows=tuple(sorted(rows, key=lambda passage: -passage.characters)),
        )

    def _search(self, rows: list[Row], texts: list[bytes]) -> None:
        # A zero byte is no letter: no passage runs from one row into the next, or past the end.
        joined = b"\0".join([*texts, bytes(PASSAGE)])
        words = _words(joined)
        at = np.flatnonzero(self._tables[0][_slots(words[:-WORD])])
        at = at[self._tables[1][_slots(_hashes(words, at, 2 * WORD))]]
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
        best: dict[int, tuple[int, int, int, int]] = {}
        for anchors in self._anchors:
            if not len(anchors.hashes):
                continue
            inside = at[at <= len(joined) - anchors.width]
            hashes = _hashes(words, inside, anchors.width)
            nearest = np.minimum(np.searchsorted(anchors.hashes, hashes), len(anchors.hashes) - 1)
            hits = np.flatnonzero(anchors.hashes[nearest] == hashes)
            owners = np.searchsorted(starts, inside[hits], side="right") - 1
            for position, anchor, owner in zip(inside[hits].tolist(), nearest[hits].tolist(), owners.tolist(), strict=True):
                holders = anchors.holders[anchor]
                for item, offset in holders:
                    passage = self._passage(joined, position, item, offset)
                    if passage is None:
                        continue
                    self._items_shared.add(item)
                    start, characters = passage
                    if owner not in best or characters > best[owner][0]:
                        best[owner] = (characters, item, start, len(holders))
                    if anchors.width == PASSAGE:
                        break  # short items are compared whole, and each may or may not be there
        self._best += [(rows[owner], best[owner]) for owner in sorted(best)]

    def _passage(self, joined: bytes, position: int, item: int, offset: int) -> tuple[int, int] | None:
        """(first character in the item, characters) of the whole passage shared around an anchor; None if too short."""
        text = self._items[item]
        back = _common(joined[max(0, position - offset) : position][::-1], text[:offset][::-1])
        forward = _common(joined[position : position + len(text) - offset], text[offset:])
        begin, end = offset - back, offset + forward
        while begin < end and text[begin] & 0xC0 == 0x80:  # the passage begins inside a character
            begin += 1
        # "ignore" leaves out a character cut at the end.
        characters = len(text[begin:end].decode("utf-8", "ignore"))
        if characters < min(PASSAGE, self._lengths[item]):
            return None
        return len(text[:begin].decode("utf-8", "ignore")), characters

    def _excerpt(self, item: int, start: int, characters: int) -> str:
        text = self._texts[item]
        # Folding is done letter by letter ("ß" gives two), so each normalised character has one place in the text.
        places = [place for place, letter in enumerate(text) for _ in normalised(letter).decode("utf-8", "ignore")]
        passage = text[places[start] : places[start + characters - 1] + 1]
        return passage if len(passage) <= EXCERPT else f"{passage[:EXCERPT]}..."


def normalised(text: str) -> bytes:
    """UTF-8 of the letters and digits of ``text`` in lower case, without anything between them."""
    if text.isascii():
        return text.encode().translate(_FOLD, _DROPPED)
    return _NOT_WORD.sub("", text.casefold()).encode("utf-8", "surrogatepass")


def _spoken(row: Row) -> Iterable[str]:
    for message in row.messages:
        yield message["content"]
        if "reasoning_content" in message:
            yield message["reasoning_content"]
        if "tool_calls" in message:
            yield json.dumps(message["tool_calls"], ensure_ascii=False)


def _anchors(items: list[bytes], places: list[tuple[int, int]], width: int, tables: np.ndarray) -> _Anchors:
    """Passages of ``width`` bytes at ``places`` (item, offset), entered in ``tables``."""
    passages: dict[bytes, dict[int, int]] = {}
    for item, offset in places:
        passages.setdefault(items[item][offset : offset + width], {}).setdefault(item, offset)
    joined = b"".join(passages)
    words, at = _words(joined), np.arange(0, len(joined), width)
    tables[0][_slots(words[at])] = True
    tables[1][_slots(_hashes(words, at, 2 * WORD))] = True
    hashes = _hashes(words, at, width)
    order = np.argsort(hashes)
    holders = list(passages.values())
    return _Anchors(width, hashes[order], [list(holders[i].items()) for i in order.tolist()])


def _words(joined: bytes) -> np.ndarray:
    """uint64: the eight bytes from each position on."""
    return np.ndarray((max(0, len(joined) - WORD + 1),), "<u8", buffer=joined, strides=(1,))


def _slots(words: np.ndarray) -> np.ndarray:
    """int64 places of 8-byte words in a table of 2 ** 22 entries."""
    slots = words * _MULTIPLIER
    slots >>= np.uint64(64 - TABLE_BITS)
    return slots.view(np.int64)


def _hashes(words: np.ndarray, at: np.ndarray, width: int) -> np.ndarray:
    """uint64 (positions,): a hash of the ``width`` bytes from each position on."""
    hashes = np.zeros(len(at), np.uint64)
    for offset in [*range(0, width - WORD, WORD), width - WORD]:
        hashes ^= words[at + offset]
        hashes *= _SECOND
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _common(a: bytes, b: bytes) -> int:
    """Length of the common beginning."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    unlike = np.flatnonzero(np.frombuffer(a, np.uint8, length) != np.frombuffer(b, np.uint8, length))
    return int(unlike[0])
