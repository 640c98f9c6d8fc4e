"""The encoding of a text file, made UTF-8 on the way: by its byte order mark, by where its NUL bytes stand, or by name.

UTF-16 is told for certain. An encoding of one byte a letter is not: any bytes are text in it. So Windows-1252 is taken only for
a table of separated values (Excel writes them so) of which not one letter beyond ASCII is UTF-8; a file that mixes both was
damaged, and stays a problem of the rows concerned. Whatever is not UTF-8 is said, and can be named.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError

WINDOWS = "cp1252"
_MARKS = ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_WELL_FORMED = re.compile(r"[\x80-\ud7ff\ue000-\U0010ffff]")
_ESCAPED = re.compile("[\udc80-\udcff]")


def checked_encoding(name: str) -> str:
    """The name, where Python knows a text encoding of it.

    Raises:
        DataError: there is none.
    """
    try:
        codecs.lookup(name)
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise DataError(
            f"unknown encoding {name!r:.40}", "data.encoding is one such as utf-8, cp1252, utf-16 or latin-1"
        ) from error
    return name


def as_utf8(blocks: Iterator[bytes], path: Path, encoding: str | None, notes: list[str]) -> Iterator[bytes]:
    """The text of a file in pieces of UTF-8, without a byte order mark.

    Args:
        blocks: the file in pieces.
        path: for messages.
        encoding: of the file; None to tell it, where it is UTF-8 or UTF-16.
        notes: receives what it is, where that is not UTF-8.

    Raises:
        DataError: bytes that are no text in this encoding.
    """
    first = next(blocks, b"")
    if encoding is None:
        encoding = _of_block(first)
        if encoding is None:
            yield first.removeprefix(codecs.BOM_UTF8)
            yield from blocks
            return
        notes.append(f"{path.name}: read as {encoding.upper()}")
    decoder = codecs.getincrementaldecoder(encoding)()
    before = 0
    try:
        text = decoder.decode(first).removeprefix("\ufeff")
        while first:
            if text:
                yield text.encode("utf-8", "surrogatepass")
            before += len(first)
            first = next(blocks, b"")
            text = decoder.decode(first, final=not first)
        if text:
            yield text.encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        message = f"{path}: not {encoding}: {error.reason} after byte {before + error.start:,}"
        raise DataError(message, "name its encoding: --encoding cp1252 (data.encoding)") from error


def _of_block(block: bytes) -> str | None:
    """UTF-16 by its mark, or by NUL bytes in every other place; None for anything else."""
    if block.startswith(_MARKS[0][0]) or block.startswith(_MARKS[1][0]):
        return "utf-16"
    head = block[:400]
    if len(head) < 4 or head.count(0) * 5 < len(head) * 2:
        return None
    odd, even = head[1::2].count(0), head[::2].count(0)
    return "utf-16-le" if odd > 20 * even else "utf-16-be" if even > 20 * odd else None


def windows_encoding(stream: Any, size: int) -> str | None:
    """``cp1252`` where a file is no UTF-8 at all; None where it is, or is neither.

    Args:
        stream: the file, decompressed; it is read to its end.
        size: bytes to read at a time.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    foreign = False
    block = stream.read(size)
    if _of_block(block) is not None:
        return None
    while block:
        if not block.isascii() or decoder.getstate()[0]:
            text = decoder.decode(block)
            if _WELL_FORMED.search(text.removeprefix("\ufeff")) or _UNDEFINED.search(block) or b"\0" in block:
                return None
            foreign = foreign or _ESCAPED.search(text) is not None
        block = stream.read(size)
    return WINDOWS if foreign or decoder.getstate()[0] else None
