"""Rows that a model was trained on are found in whichever way they come back."""

from typing import Any

import pytest

from tunesmith.data.seen import SeenRows
from tunesmith.rundir.rows import Row

LONG = "The parcel with the number {} was left at the wrong door of the house in the second street on Monday evening"


def _row(number, *turns):
    roles = ("user", "assistant")
    messages: list[Any] = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return Row(id=f"r{number}", messages=messages, place=f"line {number}")


@pytest.mark.parametrize(
    ("ours", "theirs", "seen"),
    [
        (("What is it?", "A car"), ("what is  it?", "A bus"), True),  # case, white space, another answer
        ((LONG.format(1), "yes"), (LONG.format(2), "no"), True),  # nearly the same question
        (("Hello", "Hi"), ("Hello", "Hi", "And?", "Fine"), True),  # stands whole inside a conversation
        (("12 Main St", "a"), ("14 Main St", "a"), False),
        (("What is it?", "A car"), ("Where is it?", "Here"), False),
    ],
)
def test_a_row_is_found(ours, theirs, seen):
    rows = SeenRows()
    rows.add_ours([_row(1, "Quite another question, of something else", "x"), _row(2, *ours)])
    assert rows.add_trained_on([_row(3, *theirs)]) == 1
    assert rows.found().tolist() == [False, seen]
