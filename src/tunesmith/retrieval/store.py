"""The embedded store: one SQLite file that ranks by words and by meaning, and fuses the two.

By words: FTS5's own BM25 over the tokens of ``unicode61`` with accents removed. By meaning: float32 vectors as blobs, read
once into one (N, D) matrix and compared with all of it. An exact scan of 50,000 vectors of 384 takes some 10 ms, less than
the question's own embedding; an index that approximates would cost recall and a dependency to save it. Good to about
100,000 passages (150 MB of vectors); beyond that there is ``qdrant.py`` behind the same three methods.

The rankings are fused by reciprocal rank: a passage gets ``1 / (60 + rank)`` from each ranking it is in. No scores are
mixed, so nothing is calibrated, and 60 is the paper's own constant, not a knob.

What a user asks is no query language. Only its words reach FTS5, each as a quoted string, joined by OR: no text is a syntax
error, and none can name a column or an operator. Text is brought to NFC first, for the index and the question alike; Han
and kana characters are words of their own, since FTS5 would take a whole sentence of them for one.

Equal scores keep the order in which passages were added. Similarities are rounded to 1e-6 before they are ranked: the same
vector in two rows of a matrix product may differ in its last bit.

Refused: sqlite-vec (Python's sqlite3 often cannot load extensions, and it was slower), bm25s, faiss, lancedb, chromadb (2 to
84 packages for what the standard library and numpy do here).

Sources: Cormack, Clarke and Buettcher, SIGIR 2009 (reciprocal rank fusion); SQLite, FTS5 (section 5.1.1, bm25).

Shape suffixes: N rows (passages), D hidden size (of the embedding model).
"""

import re
import sqlite3
import unicodedata
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError, RunError
from tunesmith.rundir import fingerprint

RRF_K = 60
DEPTH = 100  # places of each ranking that take part in the fusion
DIGITS = 6  # of a similarity

_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_SCHEMA = """
create table facts (name text primary key, value text not null);
create table passages (number integer primary key, id text not null unique, text text not null, vector blob);
create virtual table words using fts5(text, content='', tokenize="unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'");
"""


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        id, text: as they were added.
        score: comparable within one answer alone; in the SQLite store the sum of ``1 / (60 + rank)`` over the rankings.
    """

    id: str
    text: str
    score: float


class Embed(Protocol):
    """Texts to vectors of length 1.

    Attributes:
        key: equal for embedders that give the same vectors.
    """

    @property
    def key(self) -> str:
        """Fingerprint of the weights and of how they are used."""
        ...

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (len(texts), D), each of length 1."""
        ...


class Store(Protocol):
    """What can be searched."""

    def add(self, texts: Sequence[str], ids: Sequence[str]) -> None:
        """Take in passages."""
        ...

    def search(self, query: str, k: int) -> list[Hit]:
        """At most ``k`` passages for a question, the best first."""
        ...

    def close(self) -> None:
        """Give back files and connections; it answers no more."""
        ...


class SqliteStore:
    """A store in one SQLite file, or in memory (``:memory:``).

    Args:
        path: the file; made when it is not there.
        embed: makes the vectors; without it words alone decide.

    Raises:
        RunError: the file is not such a store, or was made with another embedder, or this SQLite has no FTS5.
    """

    def __init__(self, path: Path | str, embed: Embed | None = None):
        self._embed = embed
        self._vectors_ND: NDArray[np.float32] | None = None
        key = "" if embed is None else embed.key
        try:
            self._connection = sqlite3.connect(path)
        except sqlite3.OperationalError as error:
            raise RunError(f"{path}: cannot be opened: {error}", "is its folder there, and may it be written?") from error
        weakref.finalize(self, self._connection.close)
        try:
            if self._connection.execute("select count(*) from sqlite_master").fetchone()[0] == 0:
                self._connection.executescript(_SCHEMA)
                self._connection.execute("insert into facts values ('embedder', ?)", (key,))
                self._connection.commit()
            made_with = self.fact("embedder")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if "fts5" in str(error):
                raise RunError("this Python's SQLite has no FTS5", "use a Python whose sqlite3 module has it") from error
            raise RunError(f"{path}: not a store of passages: {error}", "delete the file, it is made anew") from error
        if made_with != key:
            self._connection.close()
            raise RunError(f"{path}: was made with another embedder", "delete the file, it is made anew")

    def add(self, texts: Sequence[str], ids: Sequence[str]) -> None:
        """Take in passages, all or none.

        Args:
            texts: N texts.
            ids: N names, none of them in the store yet.

        Raises:
            DataError: an id is there already.
            RunError: the disk is full or read-only.
        """
        assert len(texts) == len(ids)
        vectors_ND = None if self._embed is None else self._embed(texts)
        blobs = [None] * len(texts) if vectors_ND is None else [row.astype("<f4").tobytes() for row in vectors_ND]
        count = self._count()
        try:
            with self._connection as transaction:
                for number, (row_id, text, blob) in enumerate(zip(ids, texts, blobs, strict=True), start=count + 1):
                    transaction.execute("insert into passages values (?, ?, ?, ?)", (number, row_id, text, blob))
                    transaction.execute("insert into words (rowid, text) values (?, ?)", (number, _spelled(text)))
        except sqlite3.IntegrityError as error:
            twice = next((row_id for index, row_id in enumerate(ids) if row_id in ids[:index]), None)
            named = f": {twice}" if twice else ""
            raise DataError(f"a passage's id is in the store already{named}", "give each passage its own id") from error
        except sqlite3.OperationalError as error:
            raise RunError(f"the store of passages cannot be written: {error}", "is there room on the disk?") from error
        self._vectors_ND = None

    def search(self, query: str, k: int) -> list[Hit]:
        """At most ``k`` passages, the best first; ties in the order of adding. None when nothing matches."""
        depth = max(DEPTH, k)
        rankings = [self.by_words(query, depth)]
        if self._embed is not None:
            rankings.append(self.by_meaning(query, depth))
        best = fuse(rankings)[:k]
        marks = ", ".join("?" * len(best))
        rows = self._connection.execute(
            f"select number, id, text from passages where number in ({marks})", [number for number, _ in best]
        )
        found = {number: (row_id, text) for number, row_id, text in rows}
        return [Hit(*found[number], score) for number, score in best]

    def by_words(self, query: str, k: int) -> list[int]:
        """Numbers (from 1) of at most ``k`` passages that share a word with the question, by BM25."""
        words = words_of(query)
        if not words:
            return []
        rows = self._connection.execute(
            "select rowid from words where words match ? order by bm25(words), rowid limit ?", (words, k)
        )
        return [number for (number,) in rows]

    def by_meaning(self, query: str, k: int) -> list[int]:
        """Numbers (from 1) of the ``k`` passages whose vectors are nearest to the question's (cosine)."""
        assert self._embed is not None
        vectors_ND = self._loaded()
        if len(vectors_ND) == 0:
            return []
        similarity_N = np.round(vectors_ND @ self._embed([query])[0], DIGITS)
        k = min(k, len(similarity_N))
        least = np.partition(similarity_N, -k)[-k]
        among = np.flatnonzero(similarity_N >= least)
        order = np.argsort(-similarity_N[among], kind="stable")[:k]
        return (among[order] + 1).tolist()

    def fact(self, name: str) -> str | None:
        """What was noted under a name."""
        row = self._connection.execute("select value from facts where name = ?", (name,)).fetchone()
        return row and row[0]

    def note(self, name: str, value: str) -> None:
        """Note a fact beside the passages."""
        with self._connection as transaction:
            transaction.execute("insert or replace into facts values (?, ?)", (name, value))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _count(self) -> int:
        return self._connection.execute("select count(*) from passages").fetchone()[0]

    def _loaded(self) -> NDArray[np.float32]:
        """All vectors, shape (N, D), float32; read once."""
        if self._vectors_ND is None:
            rows = self._connection.execute("select vector from passages order by number")
            blobs = [blob for (blob,) in rows]
            width = len(blobs[0]) // 4 if blobs else 0
            self._vectors_ND = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), width)
        return self._vectors_ND


def build_store(path: Path, texts: Sequence[str], ids: Sequence[str], embed: Embed | None = None) -> SqliteStore:
    """The store of these passages: the file if it holds them already, else made anew, whole or not at all.

    Raises:
        DataError: an id is given twice.
    """
    key = fingerprint("store 1", list(ids), list(texts), embed and embed.key)
    if path.exists():
        try:
            store = SqliteStore(path, embed)
        except RunError:
            store = None  # damaged, or another embedder's: it is derived, and made anew
        if store is not None and store.fact("key") == key:
            return store
        if store is not None:
            store.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.with_name(f"{temporary.name}-journal").unlink(missing_ok=True)
    store = SqliteStore(temporary, embed)
    try:
        store.add(texts, ids)
        store.note("key", key)
    finally:
        store.close()
    temporary.replace(path)
    return SqliteStore(path, embed)


def fuse(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Reciprocal rank fusion: numbers with their scores, the best first, equal scores by number."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, start=1):
            scores[number] = scores.get(number, 0.0) + 1.0 / (RRF_K + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def words_of(query: str) -> str:
    """An FTS5 query for any of the words of a text, each once; empty when it has none."""
    only = "".join(char if _in_words(char) else " " for char in _spelled(query))
    return " OR ".join(f'"{word}"' for word in {word.lower(): word for word in only.split()}.values())


def _in_words(char: str) -> bool:
    """The categories of the index's tokenizer."""
    category = unicodedata.category(char)
    return category[0] in "LN" or category in ("Co", "Mn", "Mc")


def _spelled(text: str) -> str:
    return _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", text))
