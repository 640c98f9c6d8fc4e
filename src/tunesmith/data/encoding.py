"""The encoding of a text file, made UTF-8 on the way: by its byte order mark, by where its NUL bytes stand, or by name.

UTF-16 is told for certain. An encoding of one byte a letter is not: any bytes are text in it. So one is taken only for a table
of separated values (Excel writes them so) of which not one letter beyond ASCII is UTF-8, and its words decide which: in the
right encoding they are letters, of one case after the first. A file that mixes UTF-8 with another was damaged, and stays a
problem of the rows concerned. Whatever is not UTF-8 is said, with the doubt where words look wrong, and can be named.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError

# Told by words, the first where they do not decide: Windows, old Mac OS, DOS.
_BYTE_A_LETTER = {"cp1252": "Windows-1252", "mac_roman": "Mac OS Roman", "cp850": "DOS"}
_WORD = re.compile(rb"(?<![A-Za-z])[A-Za-z]*+[\x80-\xff][A-Za-z\x80-\xff]*")
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # in Windows-1252
_MOST_WORDS = 5000  # that are judged
_QUOTES = (
    "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u20ac\u2122\u00ab\u00bb\u00b0\u00ae\u00a9\u00a0\u00bf\u00a1"  # beside a word
)
_MARKS = ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))
_NOT_BY_CHANCE = re.compile(r"[\x80-\xff\u0800-\ud7ff\ue000-\U0010ffff]")  # in a text of one byte a letter
_LETTERS = re.compile(r"[A-Za-z\u0100-\u07ff\udc80-\udcff]{2,}")
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
    except UnicodeError as error:
        # Some codecs (UTF-16 without a mark) raise the plain error, which has no place.
        placed = isinstance(error, UnicodeDecodeError)
        why = f"{error.reason} after byte {before + error.start:,}" if placed else str(error)
        message = f"{path}: not {encoding}: {why}"
        raise DataError(
            message, "name the one that it is in: --encoding NAME (data.encoding), such as cp1252, cp1250 or latin-1"
        ) from error


def _of_block(block: bytes) -> str | None:
    """UTF-16 by its mark, or by NUL bytes in every other place; None for anything else."""
    if block.startswith(_MARKS[0][0]) or block.startswith(_MARKS[1][0]):
        return "utf-16"
    head = block[:400]
    if len(head) < 4 or head.count(0) * 5 < len(head) * 2:
        return None
    odd, even = head[1::2].count(0), head[::2].count(0)
    return "utf-16-le" if odd > 20 * even else "utf-16-be" if even > 20 * odd else None


def byte_encoding(stream: Any, size: int, path: Path, notes: list[str]) -> str | None:
    """The encoding of a file that is no UTF-8 at all, of one byte a letter; None where it is, or is neither.

    Args:
        stream: the file, decompressed; it is read to its end.
        size: bytes to read at a time.
        path: for messages.
        notes: receives what it is read as.

    Raises:
        DataError: one of no encoding that is known here.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    foreign = False
    words: list[bytes] = []
    block = stream.read(size)
    if _of_block(block) is not None:
        return None
    while block:
        if not block.isascii() or decoder.getstate()[0]:
            text = decoder.decode(block)
            if b"\0" in block or _is_meant_as_utf8(text.removeprefix("\ufeff")):
                return None
            foreign = foreign or _ESCAPED.search(text) is not None
            words += _WORD.findall(block)[: _MOST_WORDS - len(words)]
        block = stream.read(size)
    if not foreign and not decoder.getstate()[0]:
        return None
    return _told_by(words, path, notes)


def _is_meant_as_utf8(text: str) -> bool:
    """Whether letters of UTF-8 stand there on purpose: two bytes of another encoding may make one by chance."""
    if _NOT_BY_CHANCE.search(text):
        return True
    for word in map(re.Match[str].group, _LETTERS.finditer(text)):
        beyond = [letter for letter in word if not letter.isascii()]
        if not beyond or _ESCAPED.search(word):
            continue
        if len(beyond) == len(word) or (max(beyond) <= "\u024f" and (word[1:].islower() or word.isupper())):
            return True
    return False


def _told_by(words: list[bytes], path: Path, notes: list[str]) -> str:
    judged = [word for word in words if len(word) >= 3 or re.search(rb"[A-Za-z]", word)]
    sound = {encoding: sum(_is_word(word, encoding) for word in judged) for encoding in _BYTE_A_LETTER}
    if any(map(_UNDEFINED.search, words)):
        del sound["cp1252"]
    best = max(sound, key=lambda encoding: sound[encoding])  # the first of equals
    odd = next((word.decode(best, "replace") for word in judged if not _is_word(word, best)), "")
    wrong = f"{len(judged) - sound[best]:,} of {len(judged):,} words with letters beyond ASCII look wrong in {best} ({odd:.20})"
    if sound[best] * 2 < len(judged):
        hint = "name its encoding: --encoding cp1250, cp1251, gbk, shift_jis, or cp1252 where that is right (data.encoding)"
        raise DataError(f"{path}: not UTF-8, and {wrong}", hint)
    note = f"{path.name}: not UTF-8, read as {best} ({_BYTE_A_LETTER[best]})"
    if sound[best] * 20 < len(judged) * 19:
        note += f", but {wrong}: look, and name another: --encoding NAME (data.encoding)"
    elif best != "cp1252":
        note += ", in which its words are words; name another where letters are wrong: --encoding NAME (data.encoding)"
    notes.append(note)
    return best


def _is_word(word: bytes, encoding: str) -> bool:
    """Whether bytes are a word in an encoding: letters of one case after the first, typography around it."""
    try:
        text = word.decode(encoding).strip(_QUOTES)
    except UnicodeDecodeError:
        return False
    parts = re.split(f"[{_QUOTES}]", text)
    if text and not re.search("[A-Za-z]", text):
        return False  # a script of which no letter is ASCII
    return all(
        all(unicodedata.category(letter) in ("Ll", "Lu", "Lo") for letter in part)
        and (part[1:].islower() or part.isupper() or len(part) < 2)
        for part in parts
    )
