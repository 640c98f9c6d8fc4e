"""Near duplicates: questions that differ by a few words, inside the training part and across the split.

A test question that also stands in the training part with one word changed measures memory, not skill, and a thousand
variants of one question teach what one of them teaches. What is compared is the *question* (every turn but system,
developer and the last one; a plain text as a whole), because that is what leaks. Whether the answers agree as well is
counted beside it: near questions with unlike answers are either fine distinctions or label noise, both worth a look.

The measure is the Jaccard similarity of the sets of 8-byte windows of the normalized text (no case, no white space), with
seven zero bytes before and after it, so that a letter changed at an end costs as many windows (eight) as one inside. A
one-letter change keeps a question above 0.8 from about 65 bytes on; shorter ones ("12 Main St", "14 Main St") are
different questions, as they should be. Windows that stand in 99 of 100 of the first 1,000 questions are the data set's
own template ("Classify this review: ..."): they are no evidence for anything and are set aside, or every pair of rows
under a long instruction would be near. A lower share would also set aside the text of real near copies, where they
are many; so a data set that mixes two templates is not helped, and shows as two giant clusters.

MinHash (Broder 1997; rensa's full-set R-MinHash, after Fast Similarity Sketching, arXiv:1704.04370) makes 128 numbers
of each set, two of which agree with probability J. Cut into b bands of r numbers, a pair meets in some band with
probability 1 - (1 - J^r)^b. We take the largest r that keeps at least 0.99 at the threshold; for 0.8 that is r = 6,
b = 21:

    J            0.3     0.5     0.6     0.7     0.8     0.85    0.9
    meets        0.015   0.28    0.63    0.93    0.998   1.000   1.000

A pair that meets is judged, never taken on trust: by the exact Jaccard similarity while all texts together are under
32 MB, and above by the share of the 128 numbers that agree (standard error 0.035 at 0.8). Near ones are joined into
clusters by single linkage, as the split must keep a chain of variants on one side.

No bucket is compared all against all. Its members are sorted by the next band too and each meets the 16 that follow,
which is every pair in buckets of up to 17 and work linear in the rows in larger ones; pairs that a chain has already
joined are not judged again. Refused: rensa's Rho sketch (samples positions: a word inserted early hides a duplicate),
its LSH index (a Python object and a query for each row; 128 numbers a row and a sort need neither), and embeddings
(minutes become hours, and what "similar" means becomes a model's opinion).

Cost for a million questions of half a kilobyte: a minute to sign them and half a minute to compare (one core); 0.5 GB of
signatures, twice that for a moment, and 0.3 GB of excerpts and hashes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without stubs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tunesmith.data.finding import excerpt
from tunesmith.data.normalize import as_binary, folded_all
from tunesmith.messages import Message
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress

WINDOW = 8  # bytes; one unsigned 64-bit number
NUM_PERM = 128  # a power of two: rensa's fast path
SEED = 1
RECALL = 0.99  # least probability that a pair at the threshold meets in some band
NEIGHBOURS = 16  # that each row is compared with in a bucket
DOUBT = 0.1  # three standard errors of the estimate: pairs further below the threshold are not judged exactly
EXACT_BYTES = 32 << 20  # of normalized questions that are kept to judge pairs exactly
BATCH_BYTES = 1 << 20  # of normalized text hashed at once: eight times that in memory, twice
TEMPLATE_SAMPLE, TEMPLATE_LEAST, TEMPLATE_PERCENT = 1000, 100, 99
LEAK_CANDIDATES = 64  # training rows of a cluster among which a test row's nearest is looked for
LARGEST, SHOWN = 10, 5
OPENING = 160  # characters kept of each question: twice what is shown, so that a secret is seen whole and masked


@dataclass(frozen=True, slots=True)
class Cluster:
    """Some near duplicates.

    Attributes:
        rows: how many rows, exact copies included.
        questions: how many different questions among them.
        answers: how many different answers (normalized): 1 where all agree.
        ids, places, excerpts: of the first few with different questions, in order of reading.
    """

    rows: int
    questions: int
    answers: int
    ids: list[str]
    places: list[str]
    excerpts: list[str]


@dataclass(frozen=True, slots=True)
class NearReport:
    """What was found.

    Attributes:
        threshold: Jaccard similarity from which two questions are near.
        recall: probability that a pair right at the threshold is compared at all.
        exact: pairs were judged by their exact similarity, not by the signatures' estimate.
        template_windows: windows set aside because nearly all questions hold them.
        clusters: number of clusters of at least two different questions.
        rows: rows in them.
        rows_left: rows of the data set that would be left if one row of each cluster were kept.
        unlike_answers: clusters whose answers are not all the same.
        largest: the largest ones.
    """

    threshold: float
    recall: float
    exact: bool
    template_windows: int
    clusters: int
    rows: int
    rows_left: int
    unlike_answers: int
    largest: list[Cluster]


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
        self._signatures: list[np.ndarray] = []
        self._digests: list[bytes] = []
        self._openings: list[str] = []
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._sets: dict[int, np.ndarray] = {}  # windows of the rows judged exactly: at most eight times EXACT_BYTES
        self._groups: np.ndarray | None = None

    def add(self, rows: list[Row]) -> None:
        """Take the next rows, in order of reading."""
        assert self._groups is None, "rows added after the result was asked for"
        questions = [question(row) for row in rows]
        self._openings += [text[:OPENING] for text in questions]
        texts = folded_all(as_binary(questions))
        answers = folded_all(as_binary([_spoken(row.messages[-1]) for row in rows]))
        # Question and answer side by side: 16 bytes a row.
        self._digests.append(b"".join(_digest(part) for pair in zip(texts, answers, strict=True) for part in pair))
        self._keep(texts)
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
        found = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        digests = self._hashes()[:, 0]
        return [rows.tolist() for rows in found if len(rows) > 1 and (digests[rows] != digests[rows[0]]).any()]

    def report(self, ids: Sequence[str], places: Sequence[str]) -> NearReport:
        """Count and show the clusters; ``ids`` and ``places`` of all rows, in order of reading."""
        clusters = self.clusters()
        hashes = self._hashes()
        unlike = sum(len(np.unique(hashes[rows, 1])) > 1 for rows in clusters)
        return NearReport(
            threshold=self.threshold,
            recall=round(meeting(self.threshold, *band_shape(self.threshold)), 4),
            exact=self._kept is not None,
            template_windows=len(self._template),
            clusters=len(clusters),
            rows=sum(map(len, clusters)),
            rows_left=len(hashes) - sum(len(rows) - 1 for rows in clusters),
            unlike_answers=unlike,
            largest=[self._show(rows, ids, places) for rows in sorted(clusters, key=lambda c: (-len(c), c[0]))[:LARGEST]],
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

    def _keep(self, texts: list[bytes]) -> None:
        if self._kept is None:
            return
        self._kept_bytes += sum(map(len, texts))
        if self._kept_bytes <= EXACT_BYTES:
            self._kept += texts
        else:
            self._kept = None

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
                self._signatures.append(signatures(texts[start:end], self._template))
                start, size = end, 0

    def _matrix(self) -> np.ndarray:
        if len(self._signatures) != 1:
            self._signatures = [np.concatenate([np.empty((0, NUM_PERM), np.uint32), *self._signatures])]
        return self._signatures[0]

    def _hashes(self) -> np.ndarray:
        """uint64 (rows, 2): of the normalized question and of the normalized answer."""
        return np.frombuffer(b"".join(self._digests), np.uint64).reshape(-1, 2)

    def _group(self) -> np.ndarray:
        questions = self._hashes()[:, 0]
        rows = np.arange(len(questions))
        asked = np.flatnonzero(questions != np.frombuffer(_digest(b""), np.uint64)[0])
        # np.unique gives the first row of each distinct question; putting those in order makes labels follow reading.
        _, first, inverse = np.unique(questions[asked], return_index=True, return_inverse=True)
        distinct = asked[np.sort(first)]
        rank = np.argsort(np.argsort(first))
        labels = self._link(distinct)
        groups = rows.copy()
        groups[asked] = distinct[labels][rank[inverse]]
        return groups

    def _link(self, distinct: np.ndarray) -> np.ndarray:
        """Single linkage over distinct questions: for each, the smallest index (into ``distinct``) of its cluster."""
        matrix = self._matrix()
        matrix = matrix if len(distinct) == len(matrix) else matrix[distinct]
        labels = np.arange(len(distinct))
        bands, width = band_shape(self.threshold)
        with progress("near duplicates", bands) as bar:
            key = _band_keys(matrix, 0, width)
            for band in range(bands):
                following = _band_keys(matrix, (band + 1) % bands, width)
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
        estimate = agreement(self._matrix(), left, right)
        if self._kept is None:
            return estimate >= self.threshold
        near = np.zeros(len(left), bool)
        likely = np.flatnonzero(estimate >= self.threshold - DOUBT)
        near[likely] = self._similarity(left[likely], right[likely]) >= self.threshold
        return near

    def _similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64 (pairs,): Jaccard similarity, exact where the texts were kept."""
        if self._kept is None:
            return agreement(self._matrix(), left, right)
        sets = self._sets
        for row in {*left.tolist(), *right.tolist()} - sets.keys():
            sets[row] = np.unique(shingles([self._kept[row]], self._template)[0])
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        return np.array([_jaccard(sets[a], sets[b]) for a, b in pairs], float)

    def _show(self, rows: list[int], ids: Sequence[str], places: Sequence[str]) -> Cluster:
        hashes = self._hashes()[rows]
        _, first = np.unique(hashes[:, 0], return_index=True)
        shown: list[int] = [rows[i] for i in np.sort(first)[:SHOWN].tolist()]
        return Cluster(
            rows=len(rows),
            questions=len(first),
            answers=len(np.unique(hashes[:, 1])),
            ids=[ids[row] for row in shown],
            places=[places[row] for row in shown],
            excerpts=[excerpt(self._openings[row]) for row in shown],
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


def shingles(texts: list[bytes], template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8-byte windows of all texts as mixed 64-bit numbers (a bijection, so equal numbers are equal windows).

    Args:
        texts: normalized texts.
        template: sorted windows to leave out.

    Returns:
        windows uint64 (n,), and offsets uint64 (texts + 1,): text i owns ``windows[offsets[i]:offsets[i + 1]]``.
    """
    gap = bytes(WINDOW - 1)
    joined = gap + b"".join(text + gap for text in texts)
    lengths = np.array([len(text) + WINDOW - 1 for text in texts], np.uint64)
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)])
    windows = np.ndarray((len(joined) - WINDOW + 1,), "<u8", buffer=joined, strides=(1,)) * np.uint64(0x9E3779B97F4A7C15)
    # Multiply, fold the high half onto the low one, multiply: every output bit depends on every input bit.
    windows ^= windows >> np.uint64(32)
    windows *= np.uint64(0xD6E8FEB86659FD93)
    windows ^= windows >> np.uint64(32)
    if not len(template):
        return windows, offsets
    high = np.zeros(1 << 16, bool)
    high[(template >> np.uint64(48)).astype(np.int64)] = True
    suspects = np.flatnonzero(high[(windows >> np.uint64(48)).astype(np.int64)])
    at = np.minimum(np.searchsorted(template, windows[suspects]), len(template) - 1)
    kept = np.ones(len(windows), bool)
    kept[suspects[template[at] == windows[suspects]]] = False
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(kept, dtype=np.uint64)])
    return windows[kept], before[offsets]


def template(texts: list[bytes]) -> np.ndarray:
    """Sorted uint64 windows that stand in 99 of 100 distinct texts; none where there are fewer than 100 of these."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < TEMPLATE_LEAST:
        return np.empty(0, np.uint64)
    nothing = np.empty(0, np.uint64)
    needed = -(-TEMPLATE_PERCENT * len(distinct) // 100)
    # A window that so many texts hold is in at least one of any len - needed + 1: the shortest name all there can be.
    shortest = sorted(distinct, key=len)[: len(distinct) - needed + 1]
    names = np.unique(np.concatenate([shingles([text], nothing)[0] for text in shortest]))
    counts = np.zeros(len(names), np.int64)
    for text in distinct:
        windows = np.unique(shingles([text], nothing)[0])
        at = np.minimum(np.searchsorted(names, windows), len(names) - 1)
        counts[at[names[at] == windows]] += 1
    return names[counts >= needed]


def signatures(texts: list[bytes], template: np.ndarray) -> np.ndarray:
    """uint32 (texts, 128): MinHash signatures."""
    windows, offsets = shingles(texts, template)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(windows, offsets, NUM_PERM, SEED)
    return np.array(digests.to_rows(), np.uint32).reshape(-1, NUM_PERM)


def agreement(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 (pairs,): share of the signatures' numbers that agree, an unbiased estimate of the similarity."""
    shares = np.empty(len(left))
    for start in range(0, len(left), 8192):
        span = slice(start, start + 8192)
        shares[span] = np.count_nonzero(matrix[left[span]] == matrix[right[span]], axis=1) / NUM_PERM
    return shares


def meeting(similarity: float, bands: int, width: int) -> float:
    """Probability that a pair of this similarity meets in at least one band."""
    return 1 - (1 - similarity**width) ** bands


def band_shape(threshold: float) -> tuple[int, int]:
    """(bands, numbers in each): the widest bands in which a pair at the threshold meets often enough."""
    widths = [w for w in range(1, NUM_PERM + 1) if meeting(threshold, NUM_PERM // w, w) >= RECALL]
    width = max(widths, default=1)
    return NUM_PERM // width, width


def _band_keys(matrix: np.ndarray, band: int, width: int) -> np.ndarray:
    """uint64 (rows,): a hash of the band's numbers. A collision costs one comparison and nothing else."""
    keys = np.zeros(len(matrix), np.uint64)
    for column in range(band * width, (band + 1) * width):
        keys ^= matrix[:, column]
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _join(labels: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    n = len(labels)
    graph = coo_array((np.ones(len(left), bool), (labels[left], labels[right])), shape=(n, n))
    return connected_components(graph, directed=False)[1][labels]


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    merged = np.concatenate((a, b))
    merged.sort()
    both = np.count_nonzero(merged[1:] == merged[:-1])
    union = len(a) + len(b) - both
    return both / union if union else 1.0  # nothing beside the template in either
