"""tunesmith: fine-tune open-weights language models, and prove whether it was worth it.

Layers, top to bottom; imports go down only, and stages never import each other:

    cli
    api
    advise  data  train  evaluate  export  report      (stages)
    infer
    chat  models
    layers
    kernels
    track
    rundir
    recipe
    hardware  errors

``tests/rules/test_layers.py`` holds the order. A stage is a verb of ``tunesmith.api`` and of the command line.
"""

from tunesmith import api
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
    "api",
    "load_recipe",
]
