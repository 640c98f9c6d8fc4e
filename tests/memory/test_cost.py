"""What a training costs to rent: a plan, a time and a price for each card that holds it."""

from dataclasses import replace

import pytest

from tunesmith.memory.cards import find_card
from tunesmith.memory.cost import rents
from tunesmith.memory.dials import Dials
from tunesmith.memory.techniques import sizes

SHAPES = {size.name: size.shape for size in sizes() if size.name in ("8B", "27B")}
DIALS = Dials(recompute="auto", rows=287)


def test_the_cheapest_run_comes_first_and_cost_is_hours_by_price():
    found = rents(SHAPES["8B"], DIALS, 1e6)
    assert [rent.dollars for rent in found] == sorted(rent.dollars for rent in found) and len(found) > 3
    for rent, twice in zip(found, rents(SHAPES["8B"], DIALS, 2e6), strict=True):
        card = find_card(rent.card)
        assert card is not None and card.rent is not None and rent.per_hour == card.rent.value and rent.source
        assert rent.dollars == pytest.approx(rent.hours * rent.per_hour) and twice.hours == pytest.approx(2 * rent.hours)


def test_a_card_that_does_not_hold_the_run_is_left_out():
    dense = rents(SHAPES["27B"], replace(DIALS, base="bf16"), 1e6)
    small = {rent.card for rent in rents(SHAPES["27B"], DIALS, 1e6)} - {rent.card for rent in dense}
    cards = [find_card(name) for name in small]
    assert cards and all(card is not None and card.memory_bytes.value < 55e9 for card in cards)
