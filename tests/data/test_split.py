import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.read import Row
from tunesmith.data.split import prompt_key, split_rows
from tunesmith.errors import DataError


def _rows(prompts):
    return [
        Row(f"{i}", i, [{"role": "user", "content": p}, {"role": "assistant", "content": str(i)}])
        for i, p in enumerate(prompts, start=1)
    ]


def test_same_prompt_up_to_case_and_white_space_stays_on_one_side():
    rows = _rows([f"prompt {i}" for i in range(60)] + [f"  PROMPT\n{i} " for i in range(60)])
    parts = split_rows(rows, 0.3, 0.3, seed=0)
    keys = [{prompt_key(row) for row in parts[part]} for part in parts]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert sum(len(members) for members in parts.values()) == 120


@given(st.integers(0, 1000), st.integers(40, 70))
def test_added_and_shuffled_rows_move_no_row(seed, cut):
    rows = _rows([f"prompt {i}" for i in range(80)])
    before = split_rows(rows[:cut], 0.3, 0.3, seed=7)
    shuffled = random.Random(seed).sample(rows, len(rows))
    after = split_rows(shuffled, 0.3, 0.3, seed=7)
    for part in before:
        assert {row.id for row in before[part]} <= {row.id for row in after[part]}


def test_sizes_are_about_the_fractions_asked_for():
    parts = split_rows(_rows([str(i) for i in range(4000)]), 0.15, 0.10, seed=0)
    # binomial: three standard deviations of 600 and 400
    assert abs(len(parts["test"]) - 600) < 68 and abs(len(parts["dev"]) - 400) < 57


def test_too_few_rows():
    with pytest.raises(DataError, match="3 rows cannot be split"):
        split_rows(_rows("abc"), 0.15, 0.1, seed=0)
    with pytest.raises(DataError, match="30 rows with 1 distinct prompts leave the"):
        split_rows(_rows(["same"] * 30), 0.15, 0.1, seed=0)
