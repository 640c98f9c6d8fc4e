"""What ``train.recompute: auto`` comes to: on a GPU the first policy whose estimate fits its memory, on a CPU ``none``.

Every policy gives the same result, and each of ``none``, ``attention``, ``mlp``, ``layer`` keeps less than the one before it
and computes more again. So the first that fits, by ``advise/memory.py`` with its headroom, is the fastest that fits. The
memory is what is free now and what this process has reserved already, so that other programs on the card are reckoned with; and
what streamed layers do not take there.

On a CPU a pack has 512 tokens at most and the number of processes gives way where memory is short (``models/ranks.py``), so
there recomputing would cost a third of the speed for little.

Refused: trying a step and catching what runs out (a fragmented allocator, and packs differ in size: the step that fails may be
the thousandth).
"""

import json
from dataclasses import replace

from tunesmith.advise.memory import HEADROOM, POLICIES, Shape, first_that_fits, shape_of, training_bytes
from tunesmith.engines.base import LoadedModel
from tunesmith.models.device import usable_memory
from tunesmith.models.streaming import layers_of
from tunesmith.recipe import TrainSettings
from tunesmith.recipe.derive import Derived


def choose_recompute(derived: Derived, loaded: LoadedModel) -> Derived:
    """The same settings with a policy in the place of ``auto``, and on a GPU a line that says why."""
    if derived.settings.recompute != "auto":
        return derived
    if loaded.model.device.type == "cpu":
        return _with(derived, "none")
    base = loaded.base
    shape = shape_of(json.loads((base.directory / "config.json").read_text(encoding="utf-8")))
    if not isinstance(shape, Shape):
        return _with(derived, POLICIES[-1], f"config.json has no number for {shape}, so memory cannot be estimated")
    assert loaded.lora is not None, "no adapter"
    layers = layers_of(loaded.model)
    room, spared = usable_memory(loaded.model.device), 0 if layers is None else layers.spared
    with_spared = room + int(spared * HEADROOM["gpu"])
    policy = first_that_fits(shape, base.storage, base.compute, loaded.lora, derived.settings, with_spared)
    need: dict[str, float] = {}
    for name in dict.fromkeys((POLICIES[0], policy)):
        whole = training_bytes(shape, base.storage, base.compute, loaded.lora, _settings(derived, name))
        need[name] = (whole - spared) * HEADROOM["gpu"]
    figures = ", ".join(f"{name} {nbytes / 1e9:.1f}" for name, nbytes in need.items())
    fits = "the first that fits" if need[policy] <= room else "the smallest, and it may not fit"
    return _with(derived, policy, f"{fits}: GB needed, with a quarter to spare: {figures}; {room / 1e9:.1f} are free for it")


def _settings(derived: Derived, policy: str) -> TrainSettings:
    return derived.settings.model_copy(update={"recompute": policy})


def _with(derived: Derived, policy: str, why: str | None = None) -> Derived:
    reasons = derived.why if why is None else {**derived.why, "recompute": f"= {why}"}
    return replace(derived, settings=_settings(derived, policy), why=reasons)
