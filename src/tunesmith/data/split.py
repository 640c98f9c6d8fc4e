"""Split rows into train, dev and test, by content and for good.

Rows that belong together form a group, and a group never straddles the split: a test prompt that also stands in train
measures memory, not skill. A group is what ``data.group_by`` names, else the rows that ask the same up to case and white
space, and all pieces of one conversation (``threads.py``). Its part follows from a hash of (seed, group) alone, so the
split is the same on every machine, the order of the file plays no role, and rows that are added move no old row. The price:
part sizes are about the fractions asked for, not exactly them.

**Stratified or stable: stability wins.** Exact shares of every class need the groups of a class in one order with a cut
in it, and every added row shifts the cut. The threshold on the hash gives every class its share in expectation, and one
correction is made where answers are classes: a class of two groups or more is left neither without a test row nor
without a train row. The group with the smallest (or largest) hash moves. Such a move cannot follow from the group
alone, so an added row could take it back: this is what ``split.json`` is for. Given the split of an earlier run, every
group known to it keeps its part and only new groups are drawn, whatever the seed and the fractions are now. Without
the earlier split, what an added row can move is the few corrected groups of rare classes, rows that it joins into one
conversation, and leaks (``leaks.py``).

**Sealed is sealed.** The test part is never chosen on, and a row that was once in test stays there with its whole group,
also when its group has become another (``data.group_by`` was changed, a conversation went on).

Facts are kept as arrays: a million rows of two turns and ids of 12 characters take 60 MB, and 100 more while they are split.
Rows themselves are not held.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.data.normalize import normalized
from tunesmith.data.row_hash import content_hash, prompt_hash
from tunesmith.data.threads import threads
from tunesmith.data.turns import Turns, is_asked
from tunesmith.errors import DataError, RunError
from tunesmith.rundir.records.data import PartGroups, PartIds, Split
from tunesmith.rundir.rows import Row

MIN_ROWS = 10
PARTS = ("train", "dev", "test")  # a part is its index here, wherever parts are held as an array
TRAIN, DEV, TEST = range(3)


def group_key(row: Row, prompt: bytes | None = None) -> bytes:
    """8 bytes that are equal for rows that must not straddle the split, as far as they alone tell it.

    Rows in which nobody asks (a plain text, or an answer after a system turn alone) are grouped with exact repetitions
    only: an empty prompt would make one group of them all.

    Args:
        row: the row.
        prompt: its ``prompt_hash``, where the caller has it already.
    """
    if row.group is not None:
        return hashlib.blake2b(row.group.encode("utf-8", "surrogatepass"), digest_size=8, person=b"group_by").digest()
    if not is_asked(row):
        return content_hash(row.messages, row.tools, row.kind)[:8]
    return prompt or prompt_hash(row.messages, row.tools)


def groups_of(rows: Iterable[Row]) -> list[str]:
    """The group of each row: rows that must not straddle the split are no independent evidence either."""
    facts = SplitFacts()
    for row in rows:
        facts.add(row)
    return [group.tobytes().hex() for group in facts.groups]


def answer_key(row: Row) -> bytes:
    """8 bytes that are equal for equal answers up to case and white space: the row's class, where answers are classes."""
    answer = row.messages[-1]
    hashed = hashlib.blake2b(normalized(answer["content"]), digest_size=8)
    if "tool_calls" in answer:
        hashed.update(json.dumps(answer["tool_calls"], sort_keys=True).encode())
    return hashed.digest()


class SplitFacts:
    """What the split must know of every row, in the order of the file.

    Attributes:
        stratify: whether answers are classes.
        turns: of the rows.
    """

    def __init__(self, stratify: bool = False):
        self.stratify = stratify
        self.turns = Turns()
        self._ids = bytearray()
        self._keys = array("Q")
        self._answers = array("Q")
        self._free = bytearray()
        self._groups: np.ndarray | None = None

    def add(self, row: Row) -> None:
        """Take in one row."""
        self._ids += row.id.encode() + b"\n"
        self._keys.frombytes(group_key(row))
        self._answers.frombytes(answer_key(row))
        self._free.append(row.group is None)
        self.turns.add(row)
        self._groups = None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def ids(self) -> np.ndarray:
        """Row ids, as fixed-width bytes."""
        return np.array(bytes(self._ids).split(b"\n")[:-1], dtype=bytes)

    @property
    def keys(self) -> np.ndarray:
        """``group_key`` of each row, uint64."""
        return np.array(self._keys, dtype=np.uint64)

    @property
    def groups(self) -> np.ndarray:
        """Group of each row, uint64: its key, or that of the row with which its conversation begins."""
        if self._groups is None:
            self._groups = threads(self.turns, self.keys, np.frombuffer(bytes(self._free), bool))
        return self._groups

    @property
    def answers(self) -> np.ndarray:
        """Answer of each row, uint64."""
        return np.array(self._answers, dtype=np.uint64)

    @property
    def repeats(self) -> int:
        """Number of rows whose group an earlier row already has."""
        return len(self) - len(np.unique(self.groups))


@dataclass(frozen=True)
class EarlierSplit:
    """The split of an earlier run, as ``split.json`` holds it.

    Attributes:
        seed, test_fraction, dev_fraction: what it was drawn with.
        ids: row ids of each part, as fixed-width bytes.
        keys: ``group_key`` of the rows of each part, uint64; none of train.
    """

    seed: int
    test_fraction: float
    dev_fraction: float
    ids: list[np.ndarray]
    keys: list[np.ndarray]


def split(
    facts: SplitFacts, test_fraction: float, dev_fraction: float, seed: int, earlier: EarlierSplit | None = None
) -> np.ndarray:
    """Assign every row to train, dev or test.

    Returns:
        uint8, one index into ``PARTS`` a row.

    Raises:
        DataError: fewer than 10 rows, or a part that stays empty.
    """
    _refuse_few(facts)
    groups, group_of_row = np.unique(facts.groups, return_inverse=True)
    hashes = _group_hashes(groups, seed)
    parts = np.full(len(groups), TRAIN, np.uint8)
    parts[hashes < test_fraction + dev_fraction] = DEV
    parts[hashes < test_fraction] = TEST
    known = np.full(len(groups), -1, np.int8)
    known[group_of_row] = parts_in(earlier, facts)
    free = known < 0
    parts[~free] = known[~free]
    if facts.stratify:
        _cover_classes(parts, hashes, free, _class_of_groups(facts.answers, group_of_row, len(groups)))
    rows = parts[group_of_row]
    if earlier is None:
        refuse_an_empty_part(rows, len(groups))
    else:
        hint = "what an earlier split sealed stays in test, with its whole groups; to split anew, name a new run directory"
        refuse_an_empty_part(rows, len(groups), hint)
    return rows


def keep_given(facts: SplitFacts, given: np.ndarray, test_fraction: float, dev_fraction: float, seed: int) -> np.ndarray:
    """Keep parts that are there already; of dev and test a missing one is drawn from the train rows, group by group.

    Args:
        given: uint8, one index into ``PARTS`` a row.

    Returns:
        As ``split``.

    Raises:
        DataError: fewer than 10 rows, or a part that stays empty.
    """
    _refuse_few(facts)
    groups, group_of_row = np.unique(facts.groups, return_inverse=True)
    hashes = _group_hashes(groups, seed)[group_of_row]
    parts = given.copy()
    low = 0.0
    for part, fraction in ((TEST, test_fraction), (DEV, dev_fraction)):
        if not (given == part).any():
            parts[(given == TRAIN) & (low <= hashes) & (hashes < low + fraction)] = part
            low += fraction
    refuse_an_empty_part(parts, len(groups))
    return parts


def write_split(path: Path, facts: SplitFacts, parts: np.ndarray, test_fraction: float, dev_fraction: float, seed: int) -> None:
    """Write ``split.json``."""
    ids, keys = facts.ids, facts.keys

    def keys_of(part: int) -> tuple[str, ...]:
        return tuple([f"{key:016x}" for key in np.unique(keys[parts == part]).tolist()])

    named = {name: tuple(ids[parts == part].astype(str).tolist()) for part, name in enumerate(PARTS)}
    Split(
        seed=seed,
        test_fraction=test_fraction,
        dev_fraction=dev_fraction,
        parts=PartIds(**named),
        groups=PartGroups(dev=keys_of(DEV), test=keys_of(TEST)),
    ).write(path)


def read_split(path: Path) -> EarlierSplit:
    """Read a ``split.json``.

    Raises:
        RunError: there is none, or it is not one of ours.
    """
    if not path.exists():
        raise RunError(f"{path}: no split here", "run: tunesmith data RUN")
    try:
        record = Split.read(path)
        ids = (record.parts.train, record.parts.dev, record.parts.test)
        groups = ((), record.groups.dev, record.groups.test)
        return EarlierSplit(
            record.seed,
            record.test_fraction,
            record.dev_fraction,
            [np.array(part, dtype=bytes) for part in ids],
            [np.array([int(group, 16) for group in part], np.uint64) for part in groups],
        )
    except (RunError, ValueError) as error:
        raise RunError(
            f"not a split of this program: {error.message if isinstance(error, RunError) else f'{path}: {error}'}",
            "its test rows cannot be kept; name another earlier run, or none",
        ) from error


def _group_hashes(groups: np.ndarray, seed: int) -> np.ndarray:
    """A place in [0, 1) for each group."""
    keyed = hashlib.blake2b(digest_size=8, key=str(seed).encode())
    digests = bytearray()
    keys = groups.tobytes()
    for start in range(0, len(keys), 8):
        hashed = keyed.copy()
        hashed.update(keys[start : start + 8])
        digests += hashed.digest()
    return np.frombuffer(digests, np.uint64) / 2.0**64


def parts_in(earlier: EarlierSplit | None, facts: SplitFacts) -> np.ndarray:
    """The part of each row's group in an earlier split, -1 for new groups; test goes before dev, dev before train."""
    known = np.full(len(facts), -1, np.int8)
    if earlier is None:
        return known
    groups, group_of_row = np.unique(facts.groups, return_inverse=True)
    known = np.full(len(groups), -1, np.int8)
    ids, keys = facts.ids, facts.keys
    for part in (TRAIN, DEV, TEST):
        known[group_of_row[np.isin(ids, earlier.ids[part])]] = part
        known[group_of_row[np.isin(keys, earlier.keys[part])]] = part
    return known[group_of_row]


def _class_of_groups(answers: np.ndarray, group_of_row: np.ndarray, groups: int) -> np.ndarray:
    """One class a group: the smallest key where its rows disagree, so that the order of rows plays no role."""
    classes = np.full(groups, np.iinfo(np.uint64).max)
    np.minimum.at(classes, group_of_row, answers)
    return classes


def _cover_classes(parts: np.ndarray, hashes: np.ndarray, free: np.ndarray, classes: np.ndarray) -> None:
    """Leave no class of two groups or more without test or without train; only free groups move."""
    order = np.lexsort((hashes, classes))
    borders = np.flatnonzero(np.diff(classes[order], prepend=classes[order[:1]] ^ np.uint64(1)))
    for members in np.split(order, borders[1:]):
        if len(members) < 2:
            continue
        movable = members[free[members]]
        for wanted, other, candidate in ((TEST, TRAIN, movable[:1]), (TRAIN, TEST, movable[-1:])):
            inside = parts[members]
            only_one = (parts[candidate] == other) & (np.count_nonzero(inside == other) == 1)
            if wanted not in inside and not only_one.any():
                parts[candidate] = wanted


def _refuse_few(facts: SplitFacts) -> None:
    if len(facts) < MIN_ROWS:
        raise DataError(
            f"{len(facts)} rows cannot be split into train, dev and test (at least {MIN_ROWS} are needed)",
            "collect more; a verdict usually takes some hundreds",
        )


def refuse_an_empty_part(
    parts: np.ndarray, groups: int, hint: str = "collect more rows, or raise data.test_fraction or data.dev_fraction"
) -> None:
    """Refuse parts of which one has no row.

    Args:
        groups: number of groups, for the message.
        hint: what to do about it.

    Raises:
        DataError: one is empty.
    """
    for part, name in enumerate(PARTS):
        if not (parts == part).any():
            raise DataError(f"{len(parts)} rows in {groups} distinct groups leave the {name} part empty", hint)
