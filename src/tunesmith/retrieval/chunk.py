"""Cut documents into passages of about 200 words, and keep the place of each.

A passage is a slice of its file, never rewritten text: what is shown to the model can be looked up. Cuts fall, in this
order, between paragraphs, between sentences or lines, between words; always in the second half of the allowed length, so
that no passage is a scrap. The next passage begins up to ``OVERLAP`` words before the cut, at a sentence where there is
one, because an answer that straddles a cut would otherwise be found in neither half.

180 words are about 240 tokens of English, which fits the 256 that small sentence encoders read. Text without spaces is
counted in pieces of ``LONGEST`` characters, so that a Chinese page is not one word.

Refused: splitting by the tokens of a model (the passages would change with the embedder, and BM25 needs none), and
summaries or titles put in front (they are words that stand nowhere in the file).
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError

logger = logging.getLogger(__name__)

WORDS = 180
OVERLAP = 30
LONGEST = 30  # characters of what counts as one word
SUFFIXES = (".txt", ".md", ".jsonl")

_WORD = re.compile(rf"\S{{1,{LONGEST}}}")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f][\"')\]\u201d\u2019\u300d]*$")
_NUMBER = re.compile(r"#\d+$")


@dataclass(frozen=True)
class Passage:
    """A piece of a document.

    Attributes:
        id: the document's id, ``#``, and the number of the piece from 1.
        text: as it stands in the file.
        place: file and line, for people.
    """

    id: str
    text: str
    place: str


def document_of(passage_id: str) -> str:
    """Id of the document that a passage was cut from; an id without a number is its own document."""
    return _NUMBER.sub("", passage_id)


def read_passages(source: Path) -> list[Passage]:
    """All passages of a file or a folder, in the order of names and lines.

    Args:
        source: a ``.txt`` or ``.md`` file (one document, named by its path below ``source``'s folder), a ``.jsonl`` file (one
            document a line: ``{"text": ..., "id": ...}``, named by its id, or by file and line without one), or a folder of
            such files at any depth.

    Raises:
        DataError: nothing there, nothing readable, a file that is not UTF-8, a line that is not such an object, two documents
            of one id, or no word in all of them.
    """
    passages: list[Passage] = []
    seen: dict[str, str] = {}
    for name, file in _files(source):
        for document, text, line, place in _documents(name, file):
            if document in seen:
                raise DataError(f"{place}: the id {document} is also that of {seen[document]}", "give each document its own id")
            seen[document] = place
            counted = 0  # characters whose lines are counted; the lines of a JSON object are not the file's
            for number, (start, end) in enumerate(cut(text), start=1):
                line += text.count("\n", counted, start) if file.suffix.lower() != ".jsonl" else 0
                counted = start
                passages.append(Passage(f"{document}#{number}", text[start:end], f"{name} line {line}"))
    if not passages:
        raise DataError(f"{source}: no word in {len(seen)} documents", "data.documents names the texts to search")
    return passages


def cut(text: str) -> list[tuple[int, int]]:
    """Beginnings and ends (characters) of the passages of a text; none when it holds no word.

    Every word lies in a passage; each has at most ``WORDS`` words and shares at most ``OVERLAP`` with the one before.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    breaks = [_strength(text, words, index) for index in range(len(words) - 1)]  # after the word of that index
    spans: list[tuple[int, int]] = []
    first = 0
    while len(words) - first > WORDS:
        candidates = range(first + WORDS // 2, first + WORDS)
        last = max(candidates, key=lambda index: (breaks[index], index))
        spans.append((words[first][0], words[last][1]))
        overlap = range(last + 1 - OVERLAP, last + 1)
        first = next((index for index in overlap if breaks[index - 1] > 0), overlap.start)
    if first < len(words):
        spans.append((words[first][0], words[-1][1]))
    return spans


def _strength(text: str, words: list[tuple[int, int]], index: int) -> int:
    """How good a cut after a word is: 2 between paragraphs, 1 between sentences or lines, 0 elsewhere, -1 inside a word."""
    begin, end = words[index]
    gap = text[end : words[index + 1][0]]
    if gap.count("\n") > 1:
        return 2
    if "\n" in gap or _SENTENCE_END.search(text[begin:end]):
        return 1
    return 0 if gap else -1


def _files(source: Path) -> list[tuple[str, Path]]:
    """Name and path of every file to read."""
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        return [(source.name, source)]
    known = ", ".join(SUFFIXES)
    if not source.is_dir():
        what = f"a {source.suffix or 'nameless'} file" if source.is_file() else "nothing"
        raise DataError(f"{source}: expected a folder or a file ({known}), found {what}", "fix data.documents")
    entries = sorted(path for path in source.rglob("*") if path.is_file())
    visible = [path for path in entries if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    readable = [path for path in visible if path.suffix.lower() in SUFFIXES]
    if not readable:
        raise DataError(f"{source}: none of its {len(visible)} files is one of {known}", "convert the documents to text first")
    if left := len(visible) - len(readable):
        logger.warning(f"documents: {left} files of {source} are not {known} and are not searched")
    return [(path.relative_to(source).as_posix(), path) for path in readable]


def _documents(name: str, file: Path) -> Iterator[tuple[str, str, int, str]]:
    """(id, text, first line, place) of every document of a file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}", "save it as UTF-8") from error
    if file.suffix.lower() != ".jsonl":
        yield name, text, 1, name
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{name} line {number}"
            document_id, text = _document(line, place)
            yield document_id or f"{name}:{number}", text, number, place


def _document(line: str, place: str) -> tuple[str | None, str]:
    """Id and text of a document on a line of its own."""
    hint = 'one document a line: {"id": "refunds", "text": "..."}; id may be left out'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}", hint) from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise DataError(f"{place}: expected an object with a string under text", hint)
    document_id = value.get("id")
    if "id" in value and (not isinstance(document_id, str | int) or isinstance(document_id, bool)):
        raise DataError(f"{place}: id is neither a string nor an integer", hint)
    try:
        value["text"].encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: half of a surrogate pair at character {error.start}", "write the character whole") from error
    return None if document_id is None else str(document_id), value["text"]
