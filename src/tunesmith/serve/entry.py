"""A model that can be served: its name and renderer, and the files that an engine loads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.serve.asking import Served


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the catalogue found for a run.

    Attributes:
        served: as it will be known; its context is the one that is asked for.
        model: what is loaded: a GGUF file of the base, or of everything in one; for vLLM the adapter's PEFT directory.
        adapter: LoRA GGUF on it; None where the model is everything, and for vLLM.
        weights: what tells the model's weights and tokens from others'; adapters on the same share a process.
        base: the base as a model of its own; None where the model is everything.
        rank: that vLLM has to make room for; 0 for llama.cpp.
        base_model: hub id or directory of the base.
    """

    served: Served
    model: Path
    adapter: Path | None
    weights: str
    base: Served | None
    base_model: str
    rank: int = 0


Find = Callable[[Path, str | None, bool], Entry]  # a run, the name that it shall have, --force
