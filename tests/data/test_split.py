import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.row_hash import content_hash
from tunesmith.data.split import (
    DEV,
    TEST,
    TRAIN,
    SplitFacts,
    answer_key,
    group_key,
    read_split,
    split,
    write_split,
)
from tunesmith.errors import DataError, RunError
from tunesmith.rundir.rows import Row


def _row(prompt, answer="ok", group=None, kind="chat"):
    messages = [{"role": "assistant", "content": answer}]
    if kind == "chat":
        messages.insert(0, {"role": "user", "content": prompt})
    return Row(content_hash(messages).hex()[:12], "line 1", messages, group=group, kind=kind)


def _facts(rows, stratify=False):
    facts = SplitFacts(stratify)
    for row in rows:
        facts.add(row)
    return facts


def _parts(rows, *args, stratify=False, **kwargs):
    """Part of each row id."""
    return dict(zip((row.id for row in rows), split(_facts(rows, stratify), *args, **kwargs).tolist(), strict=True))


def _saved(rows, parts, *drawn):
    """The split of an earlier run, as it comes back from the disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "split.json"
        write_split(path, _facts(rows), np.array([parts[row.id] for row in rows]), *drawn)
        return read_split(path)


def test_what_belongs_together_stays_on_one_side():
    prompts = [_row(f"prompt {i}", str(i)) for i in range(60)] + [_row(f"  PROMPT\n{i} ", f"{i}b") for i in range(60)]
    grouped = [_row(f"other {i}", group=f"user {i % 25}") for i in range(200)]
    parts = _parts(prompts + grouped, 0.3, 0.3, seed=0)
    assert all(parts[a.id] == parts[b.id] for a, b in zip(prompts[:60], prompts[60:], strict=True))
    assert all(parts[a.id] == parts[b.id] for a, b in zip(grouped, grouped[25:], strict=False))
    # texts have no prompt: they are no one group, and equal ones are
    texts = [_row("", f"text {i}", kind="text") for i in range(100)]
    assert len({group_key(row) for row in texts}) == 100 and group_key(texts[0]) == group_key(_row("", "text 0", kind="text"))
    assert _facts(prompts).repeats == 60
    # answers are told apart by their tool calls too, and not by case and white space
    called = [Row("x", "line 1", [{"role": "assistant", "content": "", "tool_calls": [name]}]) for name in ("f", "g")]
    assert answer_key(called[0]) != answer_key(called[1]) and answer_key(_row("a", "Yes \n")) == answer_key(_row("b", "yes"))


@given(st.integers(0, 1000), st.integers(40, 70))
def test_added_and_shuffled_rows_move_no_row(seed, cut):
    rows = [_row(f"prompt {i}") for i in range(80)]
    before = _parts(rows[:cut], 0.3, 0.3, seed=7)
    after = _parts(random.Random(seed).sample(rows, len(rows)), 0.3, 0.3, seed=7)
    assert before.items() <= after.items()


@given(st.data())
def test_an_earlier_split_holds_when_rows_come_go_and_change_their_order(data):
    """Rare classes, another seed, other fractions, other groups: what was in a part stays in it."""
    rows = [_row(f"prompt {i}", f"class {i * i % 13}") for i in range(90)]
    drawn = (0.15, 0.1, 3)
    first = rows[: data.draw(st.integers(50, 70))]
    parts = _parts(first, *drawn, stratify=True)
    earlier = _saved(first, parts, *drawn)
    assert (earlier.seed, earlier.test_fraction, earlier.dev_fraction) == (3, 0.15, 0.1)
    kept = data.draw(st.lists(st.sampled_from(rows), min_size=40, unique_by=lambda row: row.id))
    seed, fraction = data.draw(st.integers(0, 9)), data.draw(st.sampled_from([0.05, 0.15, 0.4]))
    again = list({row.id: row for row in [*kept, *(row for row in first if parts[row.id] != TRAIN)]}.values())
    later = _parts(again, fraction, 0.1, seed, earlier, stratify=True)
    for row in again:
        assert row.id not in parts or later[row.id] == parts[row.id]


def test_an_old_test_row_takes_its_new_group_with_it_and_new_rows_join_old_groups():
    rows = [_row(f"prompt {i}") for i in range(60)]
    parts = _parts(rows, 0.3, 0.2, seed=0)
    earlier = _saved(rows, parts, 0.3, 0.2, 0)
    answered = [_row(f"Prompt {i}", "another answer") for i in range(60)]  # the old prompts, and only new ids
    later = _parts(answered, 0.3, 0.2, 5, earlier)
    test_and_dev = [(a, b) for a, b in zip(rows, answered, strict=True) if parts[a.id] != TRAIN]
    assert test_and_dev and all(later[b.id] == parts[a.id] for a, b in test_and_dev)
    regrouped = [_row(f"prompt {i}", group=f"{i % 20}") for i in range(60)]  # the old ids, in other groups
    later = _parts(regrouped, 0.3, 0.2, 0, earlier)
    for i in range(20):
        assert len({later[regrouped[j].id] for j in (i, i + 20, i + 40)}) == 1
    assert all(later[row.id] == TEST for row in rows if parts[row.id] == TEST)


@given(st.integers(0, 30), st.integers(2, 25))
def test_no_class_of_two_groups_is_left_out_of_test_or_train(seed, classes):
    rows = [_row(f"prompt {i}", f"class {min(i % 40, classes)}") for i in range(120)]
    plain, covered = _parts(rows, 0.15, 0.1, seed), _parts(rows, 0.15, 0.1, seed, stratify=True)
    of_class = {}
    for row in rows:
        of_class.setdefault(row.messages[-1]["content"], []).append(row)
    for members in of_class.values():
        assert {covered[row.id] for row in members} >= {TRAIN, TEST}
        # corrected only where something was missing, and then by one group for each part that was
        missing = {TRAIN, TEST} - {plain[row.id] for row in members}
        assert sum(covered[row.id] != plain[row.id] for row in members) == len(missing)


def test_a_missing_class_is_covered_by_new_groups_alone():
    old = [_row(f"prompt {i}") for i in range(60)] + [_row(f"rare {i}", "rare") for i in range(3)]
    parts = {row.id: i % 3 for i, row in enumerate(old)} | {row.id: TRAIN for row in old[60:]}
    earlier = _saved(old, parts, 0.01, 0.01, 0)
    assert _parts(old, 0.01, 0.01, 0, earlier, stratify=True) == parts  # no free group: nothing moves
    new = [_row(f"rare {i}", "rare") for i in (3, 4)]
    later = _parts(old + new, 0.01, 0.01, 0, earlier, stratify=True)
    assert sorted(later[row.id] for row in new) == [TRAIN, TEST] and parts.items() <= later.items()


def test_sizes_are_about_the_fractions_asked_for():
    parts = split(_facts([_row(str(i)) for i in range(4000)]), 0.15, 0.10, seed=0)
    # binomial: three standard deviations of 600 and 400
    assert abs((parts == TEST).sum() - 600) < 68 and abs((parts == DEV).sum() - 400) < 57


def test_too_few_rows():
    with pytest.raises(DataError, match="3 rows cannot be split"):
        split(_facts([_row(c) for c in "abc"]), 0.15, 0.1, seed=0)
    with pytest.raises(DataError, match="30 rows in 1 distinct groups leave the"):
        split(_facts([_row("same", str(i)) for i in range(30)]), 0.15, 0.1, seed=0)


def test_a_split_that_is_missing_or_not_ours_is_refused(tmp_path):
    with pytest.raises(RunError, match="no split here"):
        read_split(tmp_path / "split.json")
    for text in ("[]", "{", '{"seed": 1}', '{"seed": 1, "test_fraction": 0.1, "dev_fraction": 0.1, "parts": [], "groups": {}}'):
        (tmp_path / "split.json").write_text(text)
        with pytest.raises(RunError, match="not a split of this program"):
            read_split(tmp_path / "split.json")
