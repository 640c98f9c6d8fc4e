"""Rows of test and dev that training gives away, and what is done about them.

A row leaks where a train row asks nearly the same (``near.py``), or where it stands whole, its answer supervised, inside a
train row (``turns.py``): a greeting that opens a hundred conversations, or pieces of one conversation that
``data.group_by`` put into different groups. A test row that leaks measures memory; a dev row that leaks chooses the
settings that remember best.

With ``move`` its group goes to train as a whole, until nothing leaks. Rows that were once in test stay sealed: there the
train groups give way and become test. Refused: moving what a row leaks *into* out of train where nothing is sealed, since
one greeting would carry half of the file with it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.data.split import DEV, TEST, TRAIN, EarlierSplit, SplitFacts, parts_in, refuse_an_empty_part
from tunesmith.errors import DataError

SHOWN = 20  # leaks that a refusal names
OWN = "take them out of the train files, or draw new parts with data.split: drawn"


@dataclass(frozen=True)
class Leaks:
    """Rows that leaked before anything was moved.

    Attributes:
        test: test rows.
        inside: those of them that stand whole inside a train row.
        dev: dev rows.
    """

    test: int
    inside: int
    dev: int


def settle_leaks(
    facts: SplitFacts,
    parts: np.ndarray,
    near: np.ndarray,
    action: Literal["move", "refuse", "report"],
    earlier: EarlierSplit | None = None,
    *,
    given: bool = False,
) -> tuple[np.ndarray, Leaks]:
    """Deal with leaks.

    With ``move`` no row of test or dev leaks afterwards and no group is torn. It comes after ``split`` and may take the
    last test row of a rare class.

    Args:
        parts: as ``split`` returned them; not altered.
        near: integer, one a row: equal for the rows of one cluster, as ``NearDuplicates.groups`` has it.
        action: ``move`` the groups of the leaking rows to train (where one was in an earlier test part, the train rows'
            groups to test), ``refuse``, or only count (``report``).
        earlier: as given to ``split``.
        given: whether the parts were there already, so that nobody but their owner can change them.

    Returns:
        The parts after moving, and the leaks before.

    Raises:
        DataError: there are leaks and the action is ``refuse``, or moving leaves a part empty.
    """
    _, cluster = np.unique(near, return_inverse=True)
    alike, inside = _alike(parts, cluster), facts.turns.standing(parts != TRAIN, parts == TRAIN)[0]
    into = np.where(inside >= 0, inside, alike)
    test, dev = (np.flatnonzero((parts == part) & (into >= 0)) for part in (TEST, DEV))
    leaks = Leaks(len(test), int((inside[test] >= 0).sum()), len(dev))
    if action == "report" or not leaks.test + leaks.dev:
        return parts, leaks
    if action == "refuse":
        ids = facts.ids.astype(str)
        shown = ", ".join(f"{ids[row]} ~ {ids[into[row]]}" for row in [*test, *dev][:SHOWN])
        raise DataError(
            f"{leaks.test} test rows and {leaks.dev} dev rows have a near duplicate in train or stand whole inside a row of it "
            f"(row ~ train row): {shown}",
            OWN
            if given
            else "data.on_leak: move takes their groups to train; or name what belongs together with data.group_by",
        )
    moved = _moved(facts, parts, cluster, parts_in(earlier, facts) == TEST)
    hint = "name what belongs together (a document, a customer) with data.group_by; or data.on_leak: report, which only counts"
    refuse_an_empty_part(moved, len(np.unique(facts.groups)), hint)
    return moved, leaks


def leak_lines(leaks: Leaks, action: Literal["move", "refuse", "report"], *, given: bool = False) -> list[str]:
    """What a person should know of them; ``given`` as in ``settle_leaks``."""
    done = (
        "their groups changed sides" if action == "move" else OWN if given else "data.on_leak: move takes them out of the part"
    )
    lines: list[str] = []
    if near := leaks.test - leaks.inside:
        lines.append(f"{near} test rows have a near duplicate in train; {done}")
    if leaks.inside:
        lines.append(f"{leaks.inside} test rows stand whole inside a train row, question and answer; {done}")
    if leaks.dev:
        lines.append(f"{leaks.dev} dev rows have a near duplicate in train or stand whole inside a train row; {done}")
    return lines


def _alike(parts: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """For each row outside of train the first train row of its cluster, -1 where there is none."""
    first = np.full(int(cluster.max()) + 1, -1)
    rows = np.flatnonzero(parts == TRAIN)[::-1]
    first[cluster[rows]] = rows
    return np.where(parts == TRAIN, -1, first[cluster])


def _moved(facts: SplitFacts, parts: np.ndarray, cluster: np.ndarray, sealed: np.ndarray) -> np.ndarray:
    """Parts without leaks. Sealed rows only become more, and a group that is not sealed goes to train once, so this ends."""
    _, group = np.unique(facts.groups, return_inverse=True)
    moved, sealed = parts.copy(), sealed.copy()
    while True:
        leaking = _alike(moved, cluster) >= 0
        near = leaking.any()
        if not near:
            leaking = facts.turns.standing(moved != TRAIN, moved == TRAIN)[0] >= 0
        if not leaking.any():
            return moved
        kept = leaking & sealed
        if not kept.any():
            moved[np.isin(group, group[leaking])] = TRAIN
            continue
        train = moved == TRAIN
        giving = train & np.isin(cluster, cluster[kept]) if near else facts.turns.standing(kept, train)[1]
        giving = np.isin(group, group[giving])
        moved[giving] = TEST
        sealed |= giving
