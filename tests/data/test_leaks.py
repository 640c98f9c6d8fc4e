"""Rows of test and dev that training gives away are counted, refused by name, or moved with their groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_threads import facts_of, own_pairs, pairs, pieces, row

from tunesmith.data.leaks import leak_lines, settle_leaks
from tunesmith.data.split import DEV, TEST, TRAIN, EarlierSplit, split
from tunesmith.data.turns import MOST
from tunesmith.errors import DataError


def _earlier(facts, parts, known):
    ids, keys = facts.ids[:known], facts.keys[:known]
    at = [parts[:known] == part for part in range(3)]
    return EarlierSplit(1, 0.3, 0.2, [ids[rows] for rows in at], [keys[rows & (part > 0)] for part, rows in enumerate(at)])


@given(st.lists(st.tuples(st.integers(0, 79), st.integers(0, 9)), max_size=40), st.booleans())
def test_moving_leaves_no_cluster_across_train_and_no_old_test_row_outside(clustered, with_earlier):
    rows = [row(f"prompt {i // 2}", str(i)) for i in range(80)]
    facts = facts_of(rows)
    earlier = _earlier(facts, split(facts, 0.3, 0.2, 1), 30) if with_earlier else None
    parts = split(facts, 0.3, 0.2, 1, earlier)
    near = np.arange(80) + 10
    for place, cluster in clustered:
        near[place] = cluster
    members = [np.flatnonzero(near == label) for label in np.unique(near)]
    same, leaks = settle_leaks(facts, parts, near, "report", earlier)
    for part, count in ((TEST, leaks.test), (DEV, leaks.dev)):
        assert count == sum((parts[rows] == part).sum() for rows in members if TRAIN in parts[rows])
    assert (same == parts).all() and leaks.inside == 0
    try:
        moved, found = settle_leaks(facts, parts, near, "move", earlier)
    except DataError as error:
        assert "part empty" in error.message
        return
    assert found == leaks and not any(TRAIN in moved[rows] and len(set(moved[rows].tolist())) > 1 for rows in members)
    assert (moved[::2] == moved[1::2]).all()  # groups stay whole
    assert leaks.test + leaks.dev or (moved == parts).all()
    if with_earlier:
        assert (moved[:30][parts[:30] == TEST] == TEST).all()
    else:
        assert not ((moved != TRAIN) & (moved != parts)).any()


@given(pieces(common=True), st.booleans())
def test_a_row_inside_a_train_row_is_counted_and_moves(rows, with_earlier):
    facts = facts_of(rows)
    parts = np.unique(facts.groups, return_inverse=True)[1].astype(np.uint8) % 3
    earlier = _earlier(facts, parts, len(rows) // 2) if with_earlier else None

    def inside(parts, part):
        taught = set().union(*(pairs(each) for each, p in zip(rows, parts, strict=True) if p == TRAIN))
        return sum(p == part and max(own_pairs(each), key=len) in taught for each, p in zip(rows, parts, strict=True))

    alone = np.arange(len(rows))
    _, leaks = settle_leaks(facts, parts, alone, "report", earlier)
    assert leaks.inside == leaks.test == inside(parts, TEST) and leaks.dev == inside(parts, DEV)
    try:
        moved, _ = settle_leaks(facts, parts, alone, "move", earlier)
    except DataError as error:
        assert "part empty" in error.message
        return
    assert inside(moved, TEST) == inside(moved, DEV) == 0
    if with_earlier:
        half = len(rows) // 2
        assert (moved[:half][parts[:half] == TEST] == TEST).all()


def test_an_answer_that_is_not_supervised_gives_nothing_away():
    long = row("Hello", "Hi!", "q", "a", group="x")
    short, other = row("Hello", "Hi!", group="y"), row("z", "z", group="z")
    for weight, count in ((1, 1), (0, 0)):
        long.messages[1]["weight"] = weight
        _, leaks = settle_leaks(facts_of([short, long, other]), np.array([TEST, TRAIN, DEV]), np.arange(3), "report")
        assert leaks.inside == count


def test_a_text_in_the_system_turn_is_what_is_asked_about():
    rows = [row("Is this spam?", "yes", system=f"text {i}") for i in range(MOST + 1)]
    parts = np.array([TEST, DEV, *[TRAIN] * (MOST - 1)])
    assert settle_leaks(facts_of(rows), parts, np.arange(MOST + 1), "report")[1].inside == 0
    rows[2] = row("Is this spam?", "yes", "Why?", "Read it.", system="text 0")
    assert settle_leaks(facts_of(rows), parts, np.arange(MOST + 1), "report")[1].inside == 1


def test_leaks_are_refused_by_name_and_said():
    rows = [row(f"prompt {i}", "ok") for i in range(40)]
    parts = split(facts_of(rows), 0.3, 0.2, seed=0)
    test, train, near = int(np.argmax(parts == TEST)), int(np.argmax(parts == TRAIN)), np.arange(40)
    near[test] = near[train]
    with pytest.raises(DataError, match=f"1 test rows and 0 dev rows .*: {rows[test].id} ~ {rows[train].id}"):
        settle_leaks(facts_of(rows), parts, near, "refuse")
    _, leaks = settle_leaks(facts_of(rows), parts, near, "report")
    assert leak_lines(leaks, "report") == [
        "1 test rows have a near duplicate in train; data.on_leak: move takes them out of the part"
    ]
