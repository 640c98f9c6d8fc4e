"""A model that can be served: its name and renderer, and the files that an engine loads."""

from dataclasses import dataclass
from pathlib import Path

from tunesmith.serve.asking import Served


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the catalogue found for a run.

    Attributes:
        served: as it will be known; its context is the one that is asked for.
        model: GGUF file that is loaded: the base, or everything in one.
        adapter: LoRA GGUF on it; None where the model is everything.
        weights: what tells the model's weights and tokens from others'; adapters on the same share a process.
        base: the base as a model of its own; None where the model is everything.
        peft: PEFT directory of the adapter, for engines that take those; None where there is none.
        base_model: hub id or directory of the base.
    """

    served: Served
    model: Path
    adapter: Path | None
    weights: str
    base: Served | None
    peft: Path | None
    base_model: str
