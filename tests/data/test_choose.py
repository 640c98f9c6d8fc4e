"""Rows are taken by their content, whatever the order of the file, and weights come out as named."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.choose import chosen, places, repeats


def _taken(rows, counts, limit, seed=0):
    ids, entries = [name for name, _ in rows], np.array([entry for _, entry in rows])
    return {name for name, take in zip(ids, chosen(places(ids, seed, "take"), entries, counts, limit), strict=True) if take}


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 9))
def test_chosen_rows_do_not_depend_on_the_order_and_added_ones_push_out_as_many(count, limit, seed):
    rows = [(f"{number:012x}", number % 2) for number in range(100)]
    taken = _taken(rows, [None, count], limit, seed)
    assert taken == _taken(random.Random(seed).sample(rows, 100), [None, count], limit, seed)
    assert len(taken) == min(limit, 50 + min(count, 50))
    assert sum(int(name, 16) % 2 for name in taken) <= count
    later = _taken([*rows, *((f"x{number}", 0) for number in range(5))], [None, count], limit, seed)
    assert len(taken - later) <= 5


def test_weights_are_the_mean_of_the_repeats_also_among_rows_that_were_chosen():
    rows = [(f"{number:012x}", 0) for number in range(4000)]
    names = sorted(_taken(rows, [1000], None))
    for weight in (0.3, 1.0, 2.5):
        times = [repeats(place, weight) for place in places(names, 0, "repeat").tolist()]
        assert abs(np.mean(times) - weight) < 0.05 and set(times) <= {int(weight), int(weight) + 1}
