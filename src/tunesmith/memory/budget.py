"""What a base in NF4 may take beyond it (``base_budget``), in an estimate before anything is loaded.

Only linear layers get more bits, and no more than sixteen: experts stay in NF4, tables and head have sixteen already.
"""

from dataclasses import replace

from tunesmith.memory.dials import BYTES, Dials
from tunesmith.memory.estimate import estimate
from tunesmith.memory.plan import Point, spare_bytes
from tunesmith.memory.shape import Shape
from tunesmith.recipe.budget import budget_bytes, too_small

FROZEN = ("linear layers", "norms, routers, projections", "head", "embedding")  # terms of an estimate that are the base
SURE = 0.98  # of an estimated base; the run, which knows the bytes, decides about a budget that is closer


def with_budget(dials: Dials, shape: Shape, budget: str | None) -> Dials:
    """Dials with the bytes that a budget gives the base; as they are without one, and for ``auto``, which takes what is left.

    Args:
        budget: ``recipe.base_budget``.

    Raises:
        RecipeError: the base takes more than the budget in NF4 already.
    """
    if budget is None or budget == "auto":
        return dials
    resident = estimate(shape, dials).resident
    frozen = sum(resident.get(name, 0) for name in FROZEN)
    allowed = budget_bytes(budget, frozen, 0)
    if allowed < SURE * frozen:
        raise too_small(budget, frozen)
    return replace(dials, extra=max(0, allowed - frozen))


def auto_bytes(point: Point, room: int, context: int) -> int:
    """What ``base_budget: auto`` would give: what is left, at most what takes every layer to 16 bits.

    Args:
        point: a plan that fits; 0 where its base is not in NF4, is streamed, or has a budget.
        room: bytes of the card, or of the machine.
        context: see ``Point.needs``.
    """
    dials = point.dials
    if dials.base != "nf4" or dials.resident_layers is not None or dials.extra:
        return 0
    most = int((point.shape.linear - point.shape.expert_weights) * (BYTES["bf16"] - BYTES["nf4"]))
    return min(spare_bytes(point, room, context), most)
