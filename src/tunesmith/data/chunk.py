"""Rows on their way from a source to the reader: up to 2,048 at a time, as bytes of JSON or as values.

The size is what stays in the processor's cache with its values; what a row means is the reader's business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHUNK_ROWS = 2048


@dataclass(slots=True)
class Chunk:
    """Up to 2,048 rows that stand one after another.

    Attributes:
        prefix: of the places, e.g. ``part-1.jsonl line``.
        numbers: of the rows, from 1.
        items: bytes (one JSON text), a dict (a row of a table, nulls dropped), or ``Unreadable``.
        read: bytes of the file on disk that this chunk took.
        unread: names of a table's columns that were left out.
        part: of a split that is there already, where the file's name says one.
        entry: the number of the path that they come from, where several were named.
        notes: how the file was read, once it has been.
    """

    prefix: str
    numbers: range | list[int]
    items: list[Any]
    read: int
    unread: tuple[str, ...] = ()
    part: str | None = None
    entry: int = 0
    notes: tuple[str, ...] = ()


def gathered(unit: str, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[str, list[int], list[Any]]]:
    """Numbered rows by 2,048: what one of them is called, their numbers, the rows."""
    numbers: list[int] = []
    items: list[Any] = []
    for number, item in rows:
        numbers.append(number)
        items.append(item)
        if len(items) == CHUNK_ROWS:
            yield unit, numbers, items
            numbers, items = [], []
    if items:
        yield unit, numbers, items
