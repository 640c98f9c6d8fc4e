"""The error of a stage whose GPU failed: here, because only the recipe knows what can be tried next."""

from tunesmith.errors import ModelError, TrainingError, TunesmithError
from tunesmith.models.gpu_failure import is_gpu_failure, next_try, words_of
from tunesmith.recipe import Recipe


def as_told(error: Exception, recipe: Recipe, stage: str) -> TunesmithError | None:
    """What users are told of an error in a stage; None where it is none of a GPU.

    Args:
        stage: its name.
    """
    if not is_gpu_failure(error):
        return None
    train = recipe.train
    hint = next_try(error, stage == "train", train.recompute, recipe.base, train.max_length, recipe.evaluate.batch_size)
    return (TrainingError if stage == "train" else ModelError)(f"{stage}: {words_of(error)}", hint)
