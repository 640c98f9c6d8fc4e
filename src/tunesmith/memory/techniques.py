"""The table that people look for first: how much memory a model of some size takes, by technique.

Every figure is ``estimate`` of a published model's sizes (``sizes.json``) at one micro-batch: tensors, without what an
allocator cannot use and without the context of a process, as others publish theirs. What others publish stands beside it.
"""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.memory.dials import Dials
from tunesmith.memory.estimate import estimate
from tunesmith.memory.plan import rounding, settings
from tunesmith.memory.shape import Shape, shape_of

FILE = Path(__file__).with_name("sizes.json")
SUPERVISED = 0.14  # of the tokens, as in chats whose answers alone are trained (docs/LOG.md)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model of the table.

    Attributes:
        name: for people, ``8B``.
        like: the published model whose sizes it has.
        published_gb: what others publish for QLoRA with Unsloth, GB at 2,048 tokens.
    """

    name: str
    like: str
    shape: Shape
    published_gb: float


@dataclass(frozen=True, kw_only=True)
class Technique:
    """A way to train.

    Attributes:
        name: for people.
        dials: at every size.
        turned: whether a plan may turn what is left: ``no``, ``exact`` (weights stay on the card), ``rounded``
            (they stay, and head and moments are rounded) or ``all``.
    """

    name: str
    dials: Dials
    turned: str = "no"


FULL = Dials(technique="full", base="bf16", recompute="layer")
LORA = Dials(base="bf16", recompute="layer")
QLORA = Dials(base="nf4", recompute="layer")
TECHNIQUES = (
    Technique(name="full, AdamW in fp32", dials=FULL),
    Technique(name="LoRA, 16 bits", dials=LORA),
    Technique(name="QLoRA", dials=QLORA),
    Technique(name="QLoRA, dials turned", dials=QLORA, turned="exact"),
    Technique(name="and 8-bit head and moments", dials=QLORA, turned="rounded"),
    Technique(name="and layers streamed", dials=QLORA, turned="all"),
)


@functools.cache
def sizes() -> tuple[Size, ...]:
    """All models of the table, the smallest first."""
    found = []
    for name, entry in json.loads(FILE.read_text(encoding="utf-8"))["sizes"].items():
        shape = shape_of(entry["config"])
        assert isinstance(shape, Shape), (name, shape)
        found.append(Size(name=name, like=entry["like"], shape=shape, published_gb=entry["published_gb"]))
    return tuple(found)


def needed(size: Size, technique: Technique, tokens: int) -> int:
    """Bytes of tensors at the peak of a step.

    Args:
        tokens: of the micro-batch, of which ``SUPERVISED`` are trained on.
    """
    fixed = replace(technique.dials, tokens=tokens, rows=max(1, round(SUPERVISED * tokens)))
    if technique.turned == "no":
        return estimate(size.shape, fixed).peak
    begin = (fixed,) if technique.turned == "exact" else (fixed, *rounding(fixed))
    turned = (dials for first in begin for dials in settings(size.shape, first))
    streams = technique.turned == "all"
    return min(estimate(size.shape, dials).peak for dials in turned if streams or dials.resident_layers is None)
