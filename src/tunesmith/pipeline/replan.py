"""A first step for which a GPU has no room, planned again once, aloud.

A plan stands on two figures that only the card knows: what the process takes beside the allocator, and what the allocator takes
for the tensors. Both are assumed until the first step (``memory/room.py``, ``memory/estimate.py``). Where it fails for want of
memory they are known: the measured ones take the place of the assumed ones, and the planner is asked again. Nothing was trained
yet, so the run begins again from the same state; dials change no number, so it ends as it would have.

Only what the recipe leaves to the plan is turned. A second failure is the error that it always was: a plan that is wrong twice
is wrong for another reason.

Refused: trying smaller settings until one passes (it ends at the smallest, and says nothing); planning anew in a later step,
where hours would run before the next failure. Cost: the base is loaded a second time.
"""

import logging
from dataclasses import replace

import torch

from tunesmith.engines.base import BaseModel
from tunesmith.formatting import gb
from tunesmith.memory.estimate import estimate
from tunesmith.memory.plan import turned_words
from tunesmith.memory.room import CONTEXT
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.models.device import best_device, context_bytes, reserved_bytes, usable_memory
from tunesmith.models.gpu_failure import asked_bytes
from tunesmith.pipeline.dials import Shortage, dials_of_run, plan_of
from tunesmith.recipe import Recipe, TrainSettings

logger = logging.getLogger(__name__)


def replanned(
    error: torch.OutOfMemoryError, base: BaseModel, recipe: Recipe, settings: TrainSettings
) -> tuple[BaseModel, Shortage] | None:
    """The base as the next plan wants it loaded, and what the card said; None where nothing is left to turn.

    Args:
        error: of the first step.
        base: as it was loaded.
        settings: as the step ran.
    """
    shape = read_shape(base.directory)
    if recipe.train.memory == "off" or not isinstance(shape, Shape):
        return None
    failed, device = dials_of_run(base, recipe.lora, settings), best_device()
    held = reserved_bytes(device)
    needed = max(held + asked_bytes(error), usable_memory(device) + 1)
    shortage = Shortage(needed=needed, foretold=estimate(shape, failed).reserved, context=context_bytes(device))
    train = recipe.train
    unplaced = replace(base, resident_layers=train.resident_layers, embedding_on=train.embedding_on)
    wanted = settings.model_copy(update={key: vars(train)[key] for key in ("recompute", "offload", "mlp_tile")})
    dials = plan_of(shape, dials_of_run(unplaced, recipe.lora, wanted), train.memory, device, shortage).chosen.dials
    if dials == failed or (dials.resident_layers is not None and base.budget is not None):  # only NF4 is streamed
        return None
    resident = "all" if dials.resident_layers is None else dials.resident_layers
    again = replace(unplaced, resident_layers=resident, embedding_on=dials.embedding_on)
    logger.warning(
        f"train: the GPU's memory ended in the first step: it takes {gb(needed)} or more where {gb(shortage.foretold)} were "
        f"foretold, and {gb(shortage.context)} are taken beside the allocator where {gb(CONTEXT)} were assumed; planned again, "
        f"once: {turned_words(dials)}"
    )
    return again, shortage
