"""MinHash: sets of 8-byte windows of texts as 128 numbers each, whose agreement estimates how alike the sets are.

The measure is the Jaccard similarity of the sets of 8-byte windows of the normalized text (no case, no white space), with
seven zero bytes before and after it, so that a letter changed at an end costs as many windows (eight) as one inside. Windows
that nearly all texts hold are the data set's own template ("Classify this review: ..."): they are no evidence for anything and
are set aside, or every pair of rows under a long instruction would be near. A lower share than 99 of 100 would also set aside
the text of real near copies, where they are many; so a data set that mixes two templates is not helped, and shows as two giant
clusters.

MinHash (Broder 1997; rensa's full-set R-MinHash, after Fast Similarity Sketching, arXiv:1704.04370) makes 128 numbers
of each set, two of which agree with probability J. Cut into b bands of r numbers, a pair meets in some band with
probability 1 - (1 - J^r)^b. We take the largest r that keeps at least 0.99 at the threshold; for 0.8 that is r = 6,
b = 21:

    J            0.3     0.5     0.6     0.7     0.8     0.85    0.9
    meets        0.015   0.28    0.63    0.93    0.998   1.000   1.000

Of each number the low 16 bits are kept: numbers that differ then agree with a chance of 1 in 65,536, which no estimate over
128 of them shows, and every pair that met before still meets. Refused: eight bits, which would halve the 256 bytes of a row
again, but fill bands of two or three numbers (thresholds of 0.5 and less) with strangers.

Refused: rensa's Rho sketch (samples positions: a word inserted early hides a duplicate).
"""

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without stubs

WINDOW = 8  # bytes; one unsigned 64-bit number
NUM_PERM = 128  # a power of two: rensa's fast path
SEED = 1
RECALL = 0.99  # least probability that a pair at the threshold meets in some band
TEMPLATE_SAMPLE, TEMPLATE_LEAST, TEMPLATE_PERCENT = 1000, 100, 99


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
    own = np.ones(len(windows), bool)
    own[suspects[template[at] == windows[suspects]]] = False
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(own, dtype=np.uint64)])
    return windows[own], before[offsets]


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
    """uint16 (texts, 128): MinHash signatures, the low bits of each number."""
    windows, offsets = shingles(texts, template)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(windows, offsets, NUM_PERM, SEED)
    return np.array(digests.to_rows(), np.uint32).astype(np.uint16).reshape(-1, NUM_PERM)


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


def band_keys(numbers: np.ndarray) -> np.ndarray:
    """uint64 (rows,): a hash of a band's numbers (rows, width). A collision costs one comparison and nothing else."""
    keys = np.zeros(len(numbers), np.uint64)
    for column in numbers.T:
        keys ^= column
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two sets, given as sorted arrays of distinct numbers; 1 for two empty ones."""
    merged = np.concatenate((a, b))
    merged.sort()
    both = np.count_nonzero(merged[1:] == merged[:-1])
    union = len(a) + len(b) - both
    return both / union if union else 1.0  # nothing beside the template in either
