"""What a training keeps less of: layers recomputed, their inputs in host memory, MLPs in tiles.

The three keys of the recipe (``train.recompute``, ``train.offload``, ``train.mlp_tile``) meet here, so that every process of a
training enters one block.
"""

import contextlib
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, TrainingError
from tunesmith.layers.mlp import FusedMLP
from tunesmith.memory.dials import auto_tile
from tunesmith.models.recompute import recompute
from tunesmith.recipe import TrainSettings


@contextlib.contextmanager
def keep_less(model: PreTrainedModel, settings: TrainSettings) -> Iterator[None]:
    """Within the block the model keeps what the settings say; afterwards it is as it was.

    Raises:
        ModelError: no such parts in this model.
        TrainingError: ``train.offload`` where no GPU computes.
    """
    refuse_offload(settings, model.device.type)
    with recompute(model, settings.recompute, offload=settings.offload), tiled(model, settings.mlp_tile):
        yield


def refuse_offload(settings: TrainSettings, device: str) -> None:
    """Refuse ``train.offload`` on a CPU, where what is kept lies in host memory already.

    Raises:
        TrainingError: it is asked for there.
    """
    if settings.offload != "none" and device == "cpu":
        raise TrainingError(
            f"train.offload: {settings.offload} moves what a GPU keeps to host memory, and the model computes on a cpu, "
            "whose memory that is",
            "use train.offload: none; what a CPU keeps grows less with train.mlp_tile: auto",
        )


@contextlib.contextmanager
def tiled(model: nn.Module, tile: int | str) -> Iterator[None]:
    """Within the block MLPs pass ``tile`` tokens at a time.

    Args:
        tile: tokens; ``auto``: as many as suit the width of each MLP; 0 for all at once.

    Raises:
        ModelError: tokens are named, and no MLP of the model can be cut.
    """
    mlps = [module for module in model.modules() if isinstance(module, FusedMLP)]
    if not mlps and isinstance(tile, int) and tile:
        raise ModelError(
            f"train.mlp_tile: {tile}: no MLP of {type(model).__name__} is one of ours (experts of a mixture compute an "
            "expert's tokens at a time already)",
            "use train.mlp_tile: 0",
        )
    for mlp in mlps:
        mlp.tile = tile if isinstance(tile, int) else auto_tile(mlp.down_proj.in_features)
    try:
        yield
    finally:
        for mlp in mlps:
            mlp.tile = 0
