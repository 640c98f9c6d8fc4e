"""The replay of the caching allocator against its rules, worked out by hand."""

import pytest

from tunesmith.memory.allocator import replay

MIB = 2**20


@pytest.mark.parametrize(
    ("events", "reserved", "expandable"),
    [
        ([("a", 1)], 2, 2),  # a segment for small ones
        ([("a", MIB + 1)], 20, 20),  # and for those of up to 10 MiB
        ([("a", 11 * MIB + 1)], 12, 20),  # beyond, one of its own in steps of 2 MiB
        ([("a", 9 * MIB), ("b", 9 * MIB)], 20, 20),  # the rest of a segment is used
        ([("a", 30 * MIB), ("a", -1), ("b", 30 * MIB)], 30, 40),  # what was freed is taken again
        ([("a", 30 * MIB), ("a", -1), ("b", 31 * MIB)], 62, 40),  # too small: lost, but not to a segment that grows
        ([("a", 12 * MIB), ("b", 12 * MIB), ("a", -1), ("b", -1), ("c", 24 * MIB)], 48, 40),  # two segments do not join
        ([("a", 40 * MIB), ("a", -1), ("b", 20 * MIB), ("c", 20 * MIB), ("b", -1), ("c", -1), ("d", 40 * MIB)], 40, 40),
    ],
)
def test_bytes_taken_from_the_card(events, reserved, expandable):
    assert replay(events).reserved // MIB == reserved
    assert replay(events, expandable=True).reserved // MIB == expandable


def test_small_blocks_are_rounded_and_counted():
    found = replay([("a", 1), ("b", 513), ("a", -1), ("c", 400)])
    assert (found.allocated, found.segments) == (1536, 1)
