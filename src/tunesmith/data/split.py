"""Split rows into train, dev and test, by content and for good.

Rows that belong together form a group, and a group never straddles the split: a test prompt that also stands in train
measures memory, not skill. A group is what ``data.group_by`` names, else the rows that ask the same up to case and
white space. Its part follows from a hash of (seed, group) alone, so the split is the same on every machine, the order
of the file plays no role, and rows that are added move no old row. The price: part sizes are about the fractions asked
for, not exactly them.

**Stratified or stable: stability wins.** Exact shares of every class need the groups of a class in one order with a cut
in it, and every added row shifts the cut. The threshold on the hash gives every class its share in expectation, and one
correction is made where answers are classes: a class of two groups or more is left neither without a test row nor
without a train row. The group with the smallest (or largest) hash moves. Such a move cannot follow from the group
alone, so an added row could take it back: this is what ``split.json`` is for. Given the split of an earlier run, every
group known to it keeps its part and only new groups are drawn, whatever the seed and the fractions are now. Without
the earlier split, what an added row can move is the few corrected groups of rare classes (and leaks, below), and
nothing else.

**Sealed is sealed.** The test part is never chosen on, and a row that was once in test stays there with its whole group,
also when its group has become another (``data.group_by`` was changed). Near duplicates across train and test move the
test row's group to train; but where one of them was in the test part of an earlier run, train gives way instead.

Facts are kept as arrays: a million rows of 12-character ids take 30 MB, and 60 more while they are split. Rows themselves
are not held.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tunesmith.data.normalize import normalized
from tunesmith.data.row_hash import content_hash, prompt_hash
from tunesmith.errors import DataError, RunError
from tunesmith.rundir.records.data import PartGroups, PartIds, Split
from tunesmith.rundir.rows import Row

MIN_ROWS = 10
PARTS = ("train", "dev", "test")  # a part is its index here, wherever parts are held as an array
TRAIN, DEV, TEST = range(3)


def group_key(row: Row, prompt: bytes | None = None) -> bytes:
    """8 bytes that are equal for rows that must not straddle the split.

    Rows in which nobody asks (a plain text, or an answer after a system turn alone) are grouped with exact repetitions
    only: an empty prompt would make one group of them all.

    Args:
        row: the row.
        prompt: its ``prompt_hash``, where the caller has it already.
    """
    if row.group is not None:
        return hashlib.blake2b(row.group.encode("utf-8", "surrogatepass"), digest_size=8, person=b"group_by").digest()
    if not any(message["role"] in ("user", "tool") for message in row.messages[:-1]):
        return content_hash(row.messages, row.tools, row.kind)[:8]
    return prompt or prompt_hash(row.messages, row.tools)


def groups_of(rows: Iterable[Row]) -> list[str]:
    """The group of each row: rows that must not straddle the split are no independent evidence either."""
    return [group_key(row).hex() for row in rows]


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
    """

    def __init__(self, stratify: bool = False):
        self.stratify = stratify
        self._ids = bytearray()
        self._groups = array("Q")
        self._answers = array("Q")

    def add(self, row_id: str, group: bytes, answer: bytes) -> None:
        """Take in one row: its id, its ``group_key`` and its ``answer_key``."""
        self._ids += row_id.encode() + b"\n"
        self._groups.frombytes(group)
        self._answers.frombytes(answer)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def ids(self) -> np.ndarray:
        """Row ids, as fixed-width bytes."""
        return np.array(bytes(self._ids).split(b"\n")[:-1], dtype=bytes)

    @property
    def groups(self) -> np.ndarray:
        """Group of each row, uint64."""
        return np.array(self._groups, dtype=np.uint64)

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
        groups: group keys of each part, uint64.
    """

    seed: int
    test_fraction: float
    dev_fraction: float
    ids: list[np.ndarray]
    groups: list[np.ndarray]


def split(
    facts: SplitFacts, test_fraction: float, dev_fraction: float, seed: int, earlier: EarlierSplit | None = None
) -> np.ndarray:
    """Assign every row to train, dev or test.

    Returns:
        uint8, one index into ``PARTS`` a row.

    Raises:
        DataError: fewer than 10 rows, or a part that stays empty.
    """
    if len(facts) < MIN_ROWS:
        raise DataError(
            f"{len(facts)} rows cannot be split into train, dev and test (at least {MIN_ROWS} are needed)",
            "collect more; a verdict usually takes some hundreds",
        )
    groups, group_of_row = np.unique(facts.groups, return_inverse=True)
    hashes = _group_hashes(groups, seed)
    parts = np.full(len(groups), TRAIN, np.uint8)
    parts[hashes < test_fraction + dev_fraction] = DEV
    parts[hashes < test_fraction] = TEST
    known = _parts_in(earlier, facts, groups, group_of_row)
    free = known < 0
    parts[~free] = known[~free]
    if facts.stratify:
        _cover_classes(parts, hashes, free, _class_of_groups(facts.answers, group_of_row, len(groups)))
    rows = parts[group_of_row]
    _refuse_an_empty_part(rows, len(groups))
    return rows


def settle_leaks(
    facts: SplitFacts,
    parts: np.ndarray,
    near: np.ndarray,
    action: Literal["move", "refuse", "report"],
    earlier: EarlierSplit | None = None,
) -> tuple[np.ndarray, int]:
    """Deal with leaks: test rows in one cluster of near duplicates with train rows.

    With ``move``, all groups that hang together by clusters leave test as a whole, so that no cluster straddles test and
    train afterwards and no group is torn. It comes after ``split`` and may take the last test row of a rare class.

    Args:
        parts: as ``split`` returned them; not altered.
        near: integer, one a row: equal for the rows of one cluster, as ``NearDuplicates.groups`` has it.
        action: ``move`` the test rows' groups to train (where one was in an earlier test part, the train rows' groups to
            test), ``refuse``, or only count (``report``).
        earlier: as given to ``split``.

    Returns:
        The parts after moving, and the number of test rows that leaked before.

    Raises:
        DataError: there are leaks and the action is ``refuse``, or moving leaves a part empty.
    """
    _, cluster = np.unique(near, return_inverse=True)
    size = int(cluster.max()) + 1
    first_train = np.full(size, -1)
    train_rows = np.flatnonzero(parts == TRAIN)[::-1]
    first_train[cluster[train_rows]] = train_rows
    leaks = np.flatnonzero((parts == TEST) & (first_train[cluster] >= 0))
    if not len(leaks) or action == "report":
        return parts, len(leaks)
    if action == "refuse":
        ids = facts.ids.astype(str)
        shown = ", ".join(f"{ids[row]} ~ {ids[first_train[cluster[row]]]}" for row in leaks[:20])
        raise DataError(
            f"{len(leaks)} test rows have a near duplicate in train (test row ~ train row): {shown}",
            "data.on_leak: move takes their groups to train; or name what belongs together with data.group_by",
        )
    groups, group_of_row = np.unique(facts.groups, return_inverse=True)
    hangs_with = _components(len(groups), size, group_of_row, cluster)[group_of_row]
    leaking = np.isin(hangs_with, hangs_with[leaks])
    sealed = np.isin(hangs_with, hangs_with[_parts_in(earlier, facts, groups, group_of_row)[group_of_row] == TEST])
    moved = parts.copy()
    moved[leaking & ~sealed & (parts == TEST)] = TRAIN
    moved[leaking & sealed & (parts == TRAIN)] = TEST
    _refuse_an_empty_part(moved, len(groups), "data.on_leak: report keeps them, with what they leak said in the report")
    return moved, len(leaks)


def write_split(path: Path, facts: SplitFacts, parts: np.ndarray, test_fraction: float, dev_fraction: float, seed: int) -> None:
    """Write ``split.json``."""
    ids, groups = facts.ids, facts.groups

    def keys(part: int) -> tuple[str, ...]:
        return tuple([f"{group:016x}" for group in np.unique(groups[parts == part]).tolist()])

    named = {name: tuple(ids[parts == part].astype(str).tolist()) for part, name in enumerate(PARTS)}
    Split(
        seed=seed,
        test_fraction=test_fraction,
        dev_fraction=dev_fraction,
        parts=PartIds(**named),
        groups=PartGroups(dev=keys(DEV), test=keys(TEST)),
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


def _parts_in(earlier: EarlierSplit | None, facts: SplitFacts, groups: np.ndarray, group_of_row: np.ndarray) -> np.ndarray:
    """The part of each group in an earlier split, -1 for new groups; test goes before dev, dev before train."""
    known = np.full(len(groups), -1, np.int8)
    if earlier is not None:
        ids = facts.ids
        for part in (TRAIN, DEV, TEST):
            known[group_of_row[np.isin(ids, earlier.ids[part])]] = part
            known[np.isin(groups, earlier.groups[part])] = part
    return known


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


def _components(groups: int, clusters: int, group_of_row: np.ndarray, cluster_of_row: np.ndarray) -> np.ndarray:
    """For each group, one number that it shares with all groups that it hangs together with by clusters."""
    joining = np.bincount(cluster_of_row, minlength=clusters)[cluster_of_row] > 1
    edges = np.unique(np.stack([group_of_row[joining], groups + cluster_of_row[joining]], axis=1), axis=0)
    parent = list(range(groups + clusters))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for group, cluster in edges.tolist():
        parent[root(group)] = root(cluster)
    return np.array([root(group) for group in range(groups)])


def _refuse_an_empty_part(
    parts: np.ndarray, groups: int, hint: str = "collect more rows, or raise data.test_fraction or data.dev_fraction"
) -> None:
    for part, name in enumerate(PARTS):
        if not (parts == part).any():
            raise DataError(f"{len(parts)} rows in {groups} distinct groups leave the {name} part empty", hint)
