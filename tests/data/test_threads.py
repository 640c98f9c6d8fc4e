"""Rows that are pieces of one conversation are one group, and a greeting chains nothing."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.row_hash import content_hash
from tunesmith.data.split import DEV, TEST, TRAIN, EarlierSplit, SplitFacts, group_key, groups_of, split
from tunesmith.data.turns import MOST
from tunesmith.rundir.rows import Row


def row(*texts, system=None, tools=None, group=None):
    """User and assistant in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    messages = [{"role": "system", "content": system}] * (system is not None) + turns
    return Row(content_hash(messages, tools).hex()[:12], "line 1", messages, tools, group)


def facts_of(rows):
    facts = SplitFacts()
    for each in rows:
        facts.add(each)
    return facts


def pairs(each):
    """Every context with its answer, as it stands at the end of any run of turns."""
    turns = [(turn["role"], turn["content"]) for turn in each.messages if turn["role"] != "system"]
    ends = [i for i, turn in enumerate(turns) if turn[0] == "assistant"]
    return {tuple(turns[start : end + 1]) for end in ends for start in range(end)}


def own_pairs(each):
    """Every context, from the row's beginning, with its answer."""
    turns = [(turn["role"], turn["content"]) for turn in each.messages if turn["role"] != "system"]
    return {tuple(turns[: i + 1]) for i, turn in enumerate(turns) if turn[0] == "assistant"}


@st.composite
def pieces(draw, common):
    """Prefixes and windows of 15 conversations, some with edited ends, under system turns, in any order."""
    rows = []
    for number in range(15):
        length = draw(st.integers(1, 5))
        whole = [f"{side} {number} {step}" for step in range(length) for side in ("q", "a")]
        if common and draw(st.booleans()):
            whole = ["Hello", "Hi, how can I help?", *whole, "Thanks!", "You're welcome."]
        steps = len(whole) // 2
        for _ in range(draw(st.integers(1, 4))):
            begin = 0 if draw(st.booleans()) else draw(st.integers(0, steps - 1))
            end = draw(st.integers(begin + 1, steps))
            texts = whole[2 * begin : 2 * end]
            if draw(st.booleans()) and begin == 0:
                texts = [*texts[:-1], f"another {draw(st.integers(0, 3))}"]
            rows.append(row(*texts, system=draw(st.sampled_from([None, "s", "t"]))))
    random.Random(draw(st.integers(0, 99))).shuffle(rows)
    return rows


@given(pieces(common=False))
def test_no_answer_of_a_row_is_taught_in_its_context_by_a_row_of_another_group(rows):
    groups = facts_of(rows).groups.tolist()
    teaching = {}
    for each, group in zip(rows, groups, strict=True):
        for pair in pairs(each):
            teaching.setdefault(pair, set()).add(group)
    assert all(teaching[pair] == {group} for each, group in zip(rows, groups, strict=True) for pair in own_pairs(each))
    assert len(set(groups)) >= 10  # of 15 conversations


@given(pieces(common=True))
def test_groups_are_those_of_any_order_and_of_rows_alone(rows):
    facts, back = facts_of(rows), facts_of(rows[::-1])
    assert (facts.groups == back.groups[::-1]).all()
    assert groups_of(rows) == [group.tobytes().hex() for group in facts.groups]
    assert set(facts.groups.tolist()) <= set(facts.keys.tolist())


def test_a_greeting_a_closing_and_a_text_in_the_system_turn_chain_nothing():
    many = MOST + 1
    greeted = [row("Hello", "Hi!", f"q{i}", f"a{i}", "Thanks!", "You're welcome.") for i in range(many)]
    assert len(set(groups_of([*greeted, row("Hello", "Hi!")]))) == many + 1
    assert len(set(groups_of(greeted[:MOST]))) == 1  # few enough: they begin alike
    closed = [row(f"q{i}", f"a{i}", "Thanks!", "You're welcome.") for i in range(3)]
    assert len(set(groups_of(closed))) == 3
    judged = [row("Is this spam?", ("no", "yes")[i < 3], system=f"text {i}") for i in range(many)]
    longer = row("Is this spam?", "yes", "Why?", "It is.", system="text 4")
    assert len(set(groups_of([*judged, longer]))) == many + 1 and len(set(groups_of(judged[:3]))) == 1
    # single rows and conversations put together from them, at random
    steps = [(f"q{i}", f"a{i}") for i in range(60)]
    random.seed(0)
    mixed = [row(*sum(random.sample(steps, 3), ())) for _ in range(60)]
    assert np.unique(groups_of(mixed), return_counts=True)[1].max() < 20


def test_what_holds_rows_together_besides_a_prefix():
    conversation = [text for i in range(5) for text in (f"q{i}", f"a{i}")]
    together = [
        row(*conversation[:4]),
        row(*conversation[2:8], system="be short"),  # a later window
        row(*conversation[6:]),  # overlaps the window alone
        row("q0", "another answer"),
        row("q0", "a0", "q1 edited", "a"),
        row(" Q0\n", "a0", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
    ]
    apart = [row("q", "a"), row("q0?", "a0"), row(*conversation[:4], group="x"), row(*conversation[:2], group="y")]
    groups = groups_of([*together, *apart])
    assert len(set(groups[:6])) == 1 and len(set(groups)) == 5
    assert groups[8:] == [group_key(each).hex() for each in apart[2:]]  # what data.group_by names is all that counts


def test_a_conversation_that_goes_on_stays_where_it_was():
    whole = [[text for step in range(4) for text in (f"q{i} {step}", f"a{i} {step}")] for i in range(60)]
    old = [row(*texts[: 2 * step]) for texts in whole for step in (1, 2)]
    new = [*old, *(row(*texts[: 2 * step]) for texts in whole for step in (3, 4))]
    parts, later = split(facts_of(old), 0.3, 0.3, 0), split(facts_of(new), 0.3, 0.3, 0)
    assert (later[:120] == parts).all() and {TRAIN, DEV, TEST} == set(parts.tolist())
    # an earlier split that knew no conversations: a sealed row keeps its own, whatever else was where
    torn = np.array([TEST, DEV, TRAIN, TRAIN, TRAIN])[np.arange(len(old)) % 5]
    facts = facts_of(old)
    earlier = EarlierSplit(0, 0.3, 0.3, [facts.ids[torn == part] for part in range(3)], [facts.keys[:0]] * 3)
    assert (split(facts_of(new), 0.1, 0.1, 5, earlier)[:120][torn == TEST] == TEST).all()
