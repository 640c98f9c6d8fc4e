"""tunesmith: fine-tune open-weights language models, and prove whether it was worth it.

Layers, top to bottom; imports go down only, and stages never import each other:

    __main__
    cli  run
    serve  web
    pipeline
    advise  data  train  evaluate  export  parity  report      (stages)
    engines  retrieval
    models  chat
    checkpoints
    layers
    memory
    bits
    kernels
    peers
    tracking
    rundir
    recipe
    launch
    processes
    addresses
    errors  hardware  families  formatting  messages  notebook
    windows_memory

``tests/rules/test_layers.py`` holds the order. A stage is a verb of ``tunesmith.pipeline`` and of the command line.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tunesmith.errors import (
    DataError,
    ExportError,
    MissingPackage,
    ModelError,
    RecipeError,
    RunError,
    TrainingError,
    TunesmithError,
)

if TYPE_CHECKING:
    from tunesmith.engines.base import open_base
    from tunesmith.pipeline.check import check
    from tunesmith.pipeline.own_loop import render, train_steps
    from tunesmith.pipeline.preview import preview
    from tunesmith.recipe import Recipe, load_recipe
    from tunesmith.run import Run

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "ExportError",
    "MissingPackage",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "TrainingError",
    "TunesmithError",
    "check",
    "load_recipe",
    "open_base",
    "preview",
    "render",
    "train_steps",
]

_LAZY = {
    "Recipe": "tunesmith.recipe",
    "Run": "tunesmith.run",
    "check": "tunesmith.pipeline.check",
    "load_recipe": "tunesmith.recipe",
    "open_base": "tunesmith.engines.base",
    "preview": "tunesmith.pipeline.preview",
    "render": "tunesmith.pipeline.own_loop",
    "train_steps": "tunesmith.pipeline.own_loop",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used (PEP 562), so that ``import tunesmith`` is quick and brings no torch.

    Raises:
        AttributeError: no such name.
    """
    if name not in _LAZY:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
