"""The replay of the caching allocator against its rules, worked out by hand."""

import pytest

from tunesmith.memory.allocator import replay
from tunesmith.memory.dials import POLICIES, Dials
from tunesmith.memory.estimate import RESERVED, estimate
from tunesmith.memory.events import step_events
from tunesmith.memory.shape import Shape, shape_of

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


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_of_8b_reserves_no_more_than_is_reckoned(policy):
    facts = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8}
    shape = shape_of({**facts, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256})
    assert isinstance(shape, Shape)
    dials = Dials(recompute=policy, rows=280)
    found, reckoned = replay(step_events(shape, dials)), estimate(shape, dials)
    assert found.allocated == pytest.approx(reckoned.peak, rel=0.01)
    assert reckoned.peak < found.reserved <= reckoned.peak * RESERVED
