"""What a training costs on cards that are rented: the predicted time of its steps, by the price of an hour.

For each card of the table that has a price and holds the run, the plan that training would make there, and its time
(``memory/plan.py``). Only steps are counted: loading, dev losses, evaluation and export are not, nor the least that a provider
bills. No step time has met a card yet; docs/explanation/gpu.md says what each is made of.
"""

from dataclasses import replace

from tunesmith.memory.cards import Card, cards
from tunesmith.memory.dials import Dials
from tunesmith.memory.plan import plan_for_training, turned_words
from tunesmith.memory.shape import Shape
from tunesmith.rundir.records.advice import Rent


def rents(shape: Shape, dials: Dials, tokens: float) -> tuple[Rent, ...]:
    """One of each card that holds the run, the cheapest run first.

    Args:
        dials: of the run; their ``base`` is quantised, or the dtype of the products, which is each card's own.
        tokens: that the training passes in all, every epoch counted.
    """
    found = [rent for card in cards() if (rent := _rent(shape, dials, tokens, card)) is not None]
    return tuple(sorted(found, key=lambda rent: rent.dollars))


def _rent(shape: Shape, dials: Dials, tokens: float, card: Card) -> Rent | None:
    if card.rent is None:
        return None
    base = dials.base if dials.quantised else card.compute
    here = replace(dials, device="gpu", base=base, compute=card.compute)
    plan = plan_for_training(shape, here, int(card.memory_bytes.value), card.name)
    seconds = plan.chosen.seconds
    if not plan.fits or seconds is None:
        return None
    hours = seconds * tokens / here.tokens / 3600.0
    return Rent(
        card=card.name,
        hours=hours,
        dollars=hours * card.rent.value,
        per_hour=card.rent.value,
        plan=turned_words(plan.chosen.dials),
        source=card.rent.source,
    )
