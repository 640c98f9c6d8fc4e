"""A dense base on the grids of the GGUF that its tuned model will be: what ``train.qat`` trains with.

Every linear layer gets the blocks of the file beside its own weight (``GridBase``), so that an adapter put on it trains the
rounded weight (``layers/grid.py``). What is frozen and quantised in the file too, embedding and head, takes the file's values
once: then training sees the head that is deployed.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.checkpoints.gguf_blocks import BlockFile
from tunesmith.errors import ModelError
from tunesmith.kernels.blocks import dequantize_blocks
from tunesmith.layers.grid import GridBase
from tunesmith.models.swap import adaptable_names, put_module


def lay_grids(model: PreTrainedModel, path: Path) -> None:
    """Put the grids of a file on a dense model, in place.

    Args:
        path: GGUF of the same base.

    Raises:
        ModelError: the file is not of this model; experts, or a layer that is not dense.
    """
    file = BlockFile(path, model)
    linears = adaptable_names(model)
    for name in linears:
        linear = model.get_submodule(name)
        if type(linear) is not nn.Linear:
            raise ModelError(f"train.qat: {name} is {type(linear).__name__}, expected a dense linear layer", "train.qat: false")
        like = file.blocks(f"{name}.weight", linear.weight.shape)
        put_module(model, name, GridBase(linear, like).train(linear.training))
    done = {f"{name}.weight" for name in linears}
    for name, parameter in model.named_parameters():  # a tied table comes once
        if name not in done and name in file:
            with torch.no_grad():
                parameter.copy_(dequantize_blocks(file.blocks(name, parameter.shape), torch.float32))
