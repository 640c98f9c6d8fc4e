"""``train.memory``: the dials that a recipe leaves at their defaults, turned by a plan until the training fits.

The plan (``memory/plan.py``) is made twice by one rule. Before a model is loaded it says what the loader must know: layers that
are streamed, an embedding in host memory. Before the first step, with these fixed and the run's own numbers, it says what is
recomputed, offloaded and tiled. Room is what the card has free, with what this process has reserved already, or less where
``train.memory`` says less; a twentieth stays free for packs that are not like the one that was reckoned with. What rounds
(8-bit head, 8-bit moments) is never turned here: ``tunesmith plan`` names it, and the recipe says it. A dial that a recipe sets
stays, and binds no other one.

On a CPU a pack has 512 tokens at most and processes give way where memory is short (``models/ranks.py``), so there nothing is
turned, and an amount limits the processes.

What the card said when the first step did not fit after all (``Shortage``) takes the place of what was assumed, once
(``pipeline/replan.py``).

Refused: trying steps until one fits (a fragmented allocator, and packs differ in size: the step that fails may be the
thousandth).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from tunesmith import hardware
from tunesmith.engines.base import BaseModel, LoadedModel
from tunesmith.errors import ModelError
from tunesmith.formatting import gb, parse_amount
from tunesmith.launch.variables import launch
from tunesmith.layers.new_rows import NewRows
from tunesmith.memory.dials import Dials, dials_of
from tunesmith.memory.plan import Plan, Point, plan_for_training
from tunesmith.memory.plan import spare_bytes as left_over
from tunesmith.memory.room import CONTEXT, HEADROOM
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.models.device import best_device, device_name, usable_memory
from tunesmith.recipe import Lora, Recipe, Train, TrainSettings
from tunesmith.recipe.derive import Derived


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """What a GPU said when its memory ended in the first step.

    Attributes:
        needed: bytes that the allocator held and was asked for: the step takes these at least.
        foretold: bytes that it was foretold to hold.
        context: bytes that the card lacks beside the allocator.
    """

    needed: int
    foretold: int
    context: int

    @property
    def factor(self) -> float:
        """By which the estimate is too small, as far as is known."""
        return max(1.0, self.needed / self.foretold)


def spare_bytes(base: BaseModel, recipe: Recipe) -> int:
    """What the plan of the recipe's training leaves of the memory: of a GPU's, or of what the machine has free.

    Raises:
        ModelError: sizes are not known, or layers would be streamed: then nothing is spare.
    """
    shape, device, train = _shape(base), best_device(), recipe.train
    if isinstance(shape, str):
        raise ModelError(f"base_budget: auto: {shape}, so memory cannot be estimated", "base_budget: +10%")
    if device.type == "cpu":
        dials = dials_of_run(base, recipe.lora, _largest(train), "cpu")
        room = hardware.available_memory() if train.memory in ("auto", "off") else parse_amount(train.memory)
        return left_over(Point(shape, dials, None), room, 0)
    room = train.memory if train.memory != "off" else "auto"
    plan = plan_of(shape, dials_of_run(base, recipe.lora, _largest(train)), room, device)
    if plan.chosen.dials.resident_layers is not None:
        raise ModelError(
            "base_budget: auto: the plan streams layers from host memory, so none of the GPU's is spare",
            "leave base_budget out, or name an amount and train.recompute: layer",
        )
    return left_over(plan.chosen, room_of(room, device), 0)


def _largest(train: Train) -> TrainSettings:
    """The settings with numbers for what is not derived yet: of the largest step."""
    step = train.max_length if train.tokens_per_step == "auto" else train.tokens_per_step
    step = max(step, 2 * train.max_length)  # gradients of a second pack stay
    known = {**train.model_dump(), "learning_rate": 1.0, "num_train_epochs": 1, "tokens_per_step": step}
    return TrainSettings.model_validate(known)


def placed(base: BaseModel, recipe: Recipe) -> BaseModel:
    """The base with what the loader must know to make the recipe's training fit the GPU; as it is without one.

    Raises:
        ModelError: a budget for a base whose layers the plan streams.
    """
    train, device = recipe.train, best_device()
    at_default = train.resident_layers == "all" and train.embedding_on == "device" and not train.shard
    if device.type == "cpu" or train.memory == "off" or not at_default:
        return base
    shape = _shape(base)
    if isinstance(shape, str):
        return base
    plan = plan_of(shape, dials_of_run(base, recipe.lora, _largest(train)), train.memory, device)
    resident = plan.chosen.dials.resident_layers
    if resident is not None and base.budget is not None:
        raise ModelError(
            f"base_budget: {base.budget}: the plan streams layers from host memory, and streams NF4 alone",
            "leave base_budget out, or give a smaller train.max_length",
        )
    return replace(base, resident_layers="all" if resident is None else resident, embedding_on=plan.chosen.dials.embedding_on)


def choose_dials(
    derived: Derived, loaded: LoadedModel, longest: int | None = None, shortage: Shortage | None = None
) -> Derived:
    """The same settings with what the plan turns: the policy for ``recompute: auto``, and on a GPU a line that says why.

    Args:
        longest: tokens of the longest document; None where no rows are known.
        shortage: what is known better than by assumption, since a first step did not fit.
    """
    wanted, device = derived.settings, best_device()
    auto = wanted.recompute == "auto"
    if device.type == "cpu" or wanted.memory == "off":
        return _with(derived, {"recompute": "none"}) if auto else derived
    shape = _shape(loaded.base)
    if isinstance(shape, str):
        return _with(derived, {"recompute": "layer"}, f"{shape}, so memory cannot be estimated") if auto else derived
    assert loaded.lora is not None, "no adapter"
    adapters = (layer for layer in loaded.layers.values() if not isinstance(layer, NewRows))
    rank = max(layer.lora_A.shape[-2] for layer in adapters)  # of an adapter of another tool, some may have their own
    given = replace(dials_of_run(loaded.base, loaded.lora, wanted), longest=longest, r=rank)
    plan = plan_of(shape, given, wanted.memory, device, shortage)
    turned = turned_settings(wanted, plan.chosen.dials)
    if not turned:
        return derived
    factor = 1.0 if shortage is None else shortage.factor
    needs, room = gb(plan.chosen.needs(0) * HEADROOM["gpu"] * factor), room_of(wanted.memory, device, shortage)
    also = "".join(f", {key} {value}" for key, value in turned.items() if key != "recompute")
    how = "the fastest plan that fits" if plan.fits else "the least there is, and it may not fit"
    return _with(derived, turned, f"{how}{also}: {needs} of {gb(room)} with a twentieth to spare")


def turned_settings(wanted: TrainSettings, dials: Dials) -> dict[str, object]:
    """What a plan turns of the settings of a training: no key that a recipe sets."""
    turned: dict[str, object] = {"recompute": dials.recompute} if wanted.recompute == "auto" else {}
    if dials.offload != wanted.offload:
        turned["offload"] = dials.offload
    if wanted.mlp_tile == 0 and dials.mlp_tile:
        turned["mlp_tile"] = dials.mlp_tile
    return turned


def _shape(base: BaseModel) -> Shape | str:
    shape = read_shape(base.directory)
    return shape if isinstance(shape, Shape) else f"config.json has no usable number for {shape}"


def dials_of_run(base: BaseModel, lora: Lora, train: TrainSettings, device: Literal["gpu", "cpu"] = "gpu") -> Dials:
    """The dials of settings, with those that the base was, or will be, loaded with."""
    resident = base.resident_layers
    launched = launch()
    if train.shard and launched is not None and not isinstance(shape := _shape(base), str):
        whole = resident if isinstance(resident, int) else 0
        resident = whole + -(-(shape.depth - whole) // launched.size)  # in bytes; what is put together takes two slots
    return replace(
        dials_of(base.storage, base.compute, lora, train, device, base.base_head, len(base.new_tokens)),
        resident_layers=resident if isinstance(resident, int) else None,
        embedding_on="host" if base.embedding_on == "host" else "device",
        extra=base.extra_bytes,
    )


def plan_of(shape: Shape, dials: Dials, memory: str, device: torch.device, shortage: Shortage | None = None) -> Plan:
    """The plan for a GPU's free memory, or for less where ``train.memory`` says less."""
    factor = 1.0 if shortage is None else shortage.factor
    return plan_for_training(shape, dials, room_of(memory, device, shortage), device_name(device), 0, factor)


def room_of(memory: str, device: torch.device, shortage: Shortage | None = None) -> int:
    """Bytes that tensors and their allocator may take."""
    room = usable_memory(device)
    context = CONTEXT if shortage is None else shortage.context
    return room if memory == "auto" else min(room, parse_amount(memory) - context)


def _with(derived: Derived, turned: dict[str, object], why: str | None = None) -> Derived:
    reasons = derived.why if why is None else {**derived.why, "recompute": f"= {why}"}
    return replace(derived, settings=derived.settings.model_copy(update=turned), why=reasons)
