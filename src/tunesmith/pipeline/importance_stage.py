"""The stage ``importance``, before a training onto a grid that is chosen with an importance matrix."""

from tunesmith.pipeline.stage import Stage
from tunesmith.recipe import Recipe

BASE_IMATRIX = ("data/base.imatrix.gguf",)


def importance_stage(recipe: Recipe) -> Stage:
    """Another base, other rows or another dtype of the products measure anew, and then there is another grid to train onto."""
    return Stage(
        name="importance",
        module="importance",
        about="measure what arrives at the base's columns, for the grid that is trained onto",
        needs=("render",),
        inputs=lambda read: {**read.files("data/train.arrow"), **read.base_in_memory()},
        outputs=BASE_IMATRIX,
        implied=True,
        asks_base=True,
    )
