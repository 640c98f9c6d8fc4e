"""Near duplicates: questions that differ by a few words, inside the training part and across the split.

A test question that also stands in the training part with one word changed measures memory, not skill, and a thousand
variants of one question teach what one of them teaches. What is compared is the *question* (every turn but system,
developer and the last one; a plain text as a whole), because that is what leaks. Whether the answers agree as well is
counted beside it: near questions with unlike answers are either fine distinctions or label noise, both worth a look.

Likeness is the Jaccard similarity of 8-byte windows, estimated by MinHash (``minhash.py``). A one-letter change keeps a
question above 0.8 from about 65 bytes on; shorter ones ("12 Main St", "14 Main St") are different questions, as they should be.
A pair that meets in a band is judged, never taken on trust: by the exact similarity while all texts together are under 32 MB,
and above by the share of the 128 numbers that agree (standard error 0.035 at 0.8). Near ones are joined into clusters by single
linkage, as the split must keep a chain of variants on one side.

No bucket is compared all against all. Its members are sorted by the next band too and each meets the 16 that follow,
which is every pair in buckets of up to 17 and work linear in the rows in larger ones; pairs that a chain has already
joined are not judged again. Refused: rensa's LSH index (a Python object and a query for each row; 128 numbers a row and a sort
need neither), and embeddings (minutes become hours, and what "similar" means becomes a model's opinion).

Cost for a million questions of half a kilobyte: a minute to sign them and half a minute to compare (one core); 256 MB of
signatures (``signature_table.py``), and about 100 MB of excerpts (``kept_texts.py``) and hashes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tunesmith.data.finding import excerpt
from tunesmith.data.kept_texts import KeptTexts
from tunesmith.data.minhash import (
    TEMPLATE_SAMPLE,
    agreement,
    band_keys,
    band_shape,
    jaccard,
    meeting,
    shingles,
    signatures,
    template,
)
from tunesmith.data.normalize import as_binary, folded_all
from tunesmith.data.places import FindPlaces
from tunesmith.data.signature_table import SignatureTable
from tunesmith.messages import Message
from tunesmith.rundir.records.check import NearCluster, NearReport
from tunesmith.rundir.records.quality import RowExcerpt
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress

NEIGHBOURS = 16  # that each row is compared with in a bucket
DOUBT = 0.1  # three standard errors of the estimate: pairs further below the threshold are not judged exactly
EXACT_BYTES = 32 << 20  # of normalized questions that are kept to judge pairs exactly
BATCH_BYTES = 1 << 20  # of normalized text hashed at once: eight times that in memory, twice
LEAK_CANDIDATES = 64  # training rows of a cluster among which a test row's nearest is looked for
LARGEST, SHOWN = 10, 5
OPENING = 160  # characters kept of each question: twice what is shown, so that a secret is seen whole and masked


@dataclass(frozen=True, slots=True)
class Leak:
    """A test row whose question, or nearly, is in the training part. ``test`` and ``train`` count rows from 0."""

    test: int
    train: int
    similarity: float
    same_answer: bool


class NearDuplicates:
    """Takes rows batch by batch, then tells which are near. The result does not depend on where batches end.

    Args:
        threshold: Jaccard similarity, above 0 and at most 1, from which two questions count as near.
    """

    def __init__(self, threshold: float = 0.8):
        assert 0 < threshold <= 1, threshold
        self.threshold = threshold
        self._waiting: list[bytes] | None = []  # until there are enough to know the template
        self._template = np.empty(0, np.uint64)
        self._signatures = SignatureTable()
        self._digests: list[bytes] = []
        self._openings = KeptTexts()
        self._texts: list[bytes] | None = []
        self._text_bytes = 0
        self._sets: dict[int, np.ndarray] = {}  # windows of the rows judged exactly: at most eight times EXACT_BYTES
        self._groups: np.ndarray | None = None

    def add(self, rows: list[Row]) -> None:
        """Take the next rows, in order of reading."""
        assert self._groups is None, "rows added after the result was asked for"
        questions = [question(row) for row in rows]
        self._openings.add([text[:OPENING] for text in questions])
        texts = folded_all(as_binary(questions))
        answers = folded_all(as_binary([_spoken(row.messages[-1]) for row in rows]))
        # Question and answer side by side: 16 bytes a row.
        self._digests.append(b"".join(_digest(part) for pair in zip(texts, answers, strict=True) for part in pair))
        self._store(texts)
        if self._waiting is None:
            self._sign(texts)
            return
        self._waiting += texts
        if len(self._waiting) >= TEMPLATE_SAMPLE:
            self._sign_waiting()

    def groups(self) -> np.ndarray:
        """int64 (rows,): the first row of each row's cluster, itself where it has none; exact copies are together.

        Rows without a question (the assistant speaks unasked) are each alone.
        """
        if self._groups is None:
            self._sign_waiting()
            self._groups = self._group()
        return self._groups

    def clusters(self) -> list[list[int]]:
        """Rows (from 0) of each cluster of at least two different questions, in order of reading.

        Exact copies alone make no cluster, but are listed in the cluster of what they are near to.
        """
        groups = self.groups()
        order = np.argsort(groups, kind="stable")
        borders = np.concatenate([[0], np.flatnonzero(np.diff(groups[order])) + 1, [len(order)]])
        several = np.flatnonzero(np.diff(borders) > 1)  # an array for each row that is alone would be a hundred megabytes
        clusters = [order[borders[i] : borders[i + 1]] for i in several.tolist()]
        digests = self._hashes()[:, 0]
        return [rows.tolist() for rows in clusters if (digests[rows] != digests[rows[0]]).any()]

    def report(self, find: FindPlaces) -> NearReport:
        """Count and show the clusters; ``find`` gives ids and places of rows by their number in order of reading."""
        clusters = self.clusters()
        hashes = self._hashes()
        return NearReport(
            threshold=self.threshold,
            recall=round(meeting(self.threshold, *band_shape(self.threshold)), 4),
            exact=self._texts is not None,
            template_windows=len(self._template),
            clusters=len(clusters),
            rows=sum(map(len, clusters)),
            rows_left=len(hashes) - sum(len(rows) - 1 for rows in clusters),
            unlike_answers=sum(len(np.unique(hashes[rows, 1])) > 1 for rows in clusters),
            largest=tuple(self._show(rows, find) for rows in sorted(clusters, key=lambda c: (-len(c), c[0]))[:LARGEST]),
        )

    def leaks(self, parts: Sequence[str]) -> list[Leak]:
        """Every test row in one cluster with training rows, with the nearest of the first 64 of them.

        Exact copies count: a leak is a leak.

        Args:
            parts: the part of each row in order of reading; ``test`` is held against ``train``.
        """
        groups, hashes = self.groups(), self._hashes()
        members: dict[int, tuple[list[int], list[int]]] = {}
        for row, (group, part) in enumerate(zip(groups.tolist(), parts, strict=True)):
            if part in ("test", "train"):
                members.setdefault(group, ([], []))[part == "train"].append(row)
        leaks: list[Leak] = []
        for test, train in members.values():
            if not train:
                continue
            seen = np.array(train[:LEAK_CANDIDATES])
            for row in test:
                alike = self._similarity(np.full(len(seen), row), seen)
                best = int(alike.argmax())
                agree = bool(hashes[row, 1] == hashes[seen[best], 1])
                leaks.append(Leak(row, int(seen[best]), round(float(alike[best]), 4), agree))
        return sorted(leaks, key=lambda leak: leak.test)

    def _store(self, texts: list[bytes]) -> None:
        if self._texts is None:
            return
        self._text_bytes += sum(map(len, texts))
        if self._text_bytes <= EXACT_BYTES:
            self._texts += texts
        else:
            self._texts = None

    def _sign_waiting(self) -> None:
        if self._waiting is not None:
            self._template = template(self._waiting[:TEMPLATE_SAMPLE])
            self._sign(self._waiting)
            self._waiting = None

    def _sign(self, texts: list[bytes]) -> None:
        start = size = 0
        for end, text in enumerate(texts, start=1):
            size += len(text)
            if size >= BATCH_BYTES or end == len(texts):
                self._signatures.add(signatures(texts[start:end], self._template))
                start, size = end, 0

    def _hashes(self) -> np.ndarray:
        """uint64 (rows, 2): of the normalized question and of the normalized answer."""
        return np.frombuffer(b"".join(self._digests), np.uint64).reshape(-1, 2)

    def _group(self) -> np.ndarray:
        questions = self._hashes()[:, 0]
        rows = np.arange(len(questions))
        with_question = np.flatnonzero(questions != np.frombuffer(_digest(b""), np.uint64)[0])
        # np.unique gives the first row of each distinct question; putting those in order makes labels follow reading.
        _, first, inverse = np.unique(questions[with_question], return_index=True, return_inverse=True)
        distinct = with_question[np.sort(first)]
        rank = np.argsort(np.argsort(first))
        labels = self._link(distinct)
        groups = rows.copy()
        groups[with_question] = distinct[labels][rank[inverse]]
        return groups

    def _link(self, distinct: np.ndarray) -> np.ndarray:
        """Single linkage over distinct questions: for each, the smallest index (into ``distinct``) of its cluster."""
        matrix = self._signatures.whole()
        labels = np.arange(len(distinct))
        bands, width = band_shape(self.threshold)
        with progress("near duplicates", bands) as bar:
            key = band_keys(matrix[distinct, :width])
            for band in range(bands):
                start = (band + 1) % bands * width
                following = band_keys(matrix[distinct, start : start + width])
                labels = self._link_band(distinct, key, following, labels)
                key = following
                bar.advance()
        smallest = np.full(len(labels), len(labels))
        np.minimum.at(smallest, labels, np.arange(len(labels)))
        return smallest[labels]

    def _link_band(self, distinct: np.ndarray, key: np.ndarray, following: np.ndarray, labels: np.ndarray) -> np.ndarray:
        order = np.argsort(key, kind="stable")
        equal = key[order][1:] == key[order][:-1]
        crowded = order[np.concatenate([equal, [False]]) | np.concatenate([[False], equal])] if len(order) else order
        order = crowded[np.lexsort((crowded, following[crowded], key[crowded]))]
        for distance in range(1, NEIGHBOURS + 1):
            left, right = order[:-distance], order[distance:]
            together = key[left] == key[right]
            if not together.any():
                break
            candidates = np.flatnonzero(together & (labels[left] != labels[right]))
            left, right = left[candidates], right[candidates]
            near = self._near(distinct[left], distinct[right])
            if near.any():
                labels = _join(labels, left[near], right[near])
        return labels

    def _near(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        estimate = agreement(self._signatures.whole(), left, right)
        if self._texts is None:
            return estimate >= self.threshold
        near = np.zeros(len(left), bool)
        likely = np.flatnonzero(estimate >= self.threshold - DOUBT)
        near[likely] = self._similarity(left[likely], right[likely]) >= self.threshold
        return near

    def _similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64 (pairs,): Jaccard similarity, exact where the texts were kept."""
        if self._texts is None:
            return agreement(self._signatures.whole(), left, right)
        sets = self._sets
        for row in {*left.tolist(), *right.tolist()} - sets.keys():
            sets[row] = np.unique(shingles([self._texts[row]], self._template)[0])
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        return np.array([jaccard(sets[a], sets[b]) for a, b in pairs], float)

    def _show(self, rows: list[int], find: FindPlaces) -> NearCluster:
        hashes = self._hashes()[rows]
        _, first = np.unique(hashes[:, 0], return_index=True)
        shown: list[int] = [rows[i] for i in np.sort(first)[:SHOWN].tolist()]
        places, openings = find(set(shown)), self._openings.get(set(shown))
        return NearCluster(
            rows=len(rows),
            questions=len(first),
            answers=len(np.unique(hashes[:, 1])),
            examples=tuple(
                RowExcerpt(id=places[row].id, place=places[row].place, excerpt=excerpt(openings[row])) for row in shown
            ),
        )


def question(row: Row) -> str:
    """What is asked: every turn but system, developer and the last one; of a plain text, the text."""
    if row.kind == "text":
        return row.messages[-1]["content"]
    return "\n".join(_spoken(message) for message in row.messages[:-1] if message["role"] not in ("system", "developer"))


def _spoken(message: Message) -> str:
    if "tool_calls" in message:
        return f"{message['content']}\n{json.dumps(message['tool_calls'], sort_keys=True, ensure_ascii=False)}"
    return message["content"]


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).digest()


def _join(labels: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    n = len(labels)
    graph = coo_array((np.ones(len(left), bool), (labels[left], labels[right])), shape=(n, n))
    return connected_components(graph, directed=False)[1][labels]
