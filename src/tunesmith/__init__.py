"""tunesmith: fine-tune open-weights language models, and prove whether it was worth it.

Layers, top to bottom; imports go down only, and stages never import each other:

    cli
    pipeline
    advise  data  train  evaluate  export  parity  report      (stages)
    engines  retrieval
    models  chat
    checkpoints
    layers
    kernels
    tracking
    rundir
    recipe
    errors  hardware  families  formatting

``tests/rules/test_layers.py`` holds the order. A stage is a verb of ``tunesmith.pipeline`` and of the command line.
"""

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
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.rundir import RunDir

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "ExportError",
    "MissingPackage",
    "ModelError",
    "Recipe",
    "RecipeError",
    "RunDir",
    "RunError",
    "TrainingError",
    "TunesmithError",
    "load_recipe",
]
