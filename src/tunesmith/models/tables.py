"""Where the two largest tables of a model lie: the embedding, and the output head.

``train.embedding_on: host`` leaves the embedding in host memory (``layers/embedding.py``): ``2 V D`` bytes less on a GPU, for
``2 T D`` that go up a pack; no number changes. ``base_head: int8`` holds the head in 8 bits (``layers/int8.py``): ``V (D - 4)``
bytes less, and the head is another one by 0.9 % of its length. Where both are one table, the embedding's rows come out of the 8
bits too, or, with both keys, in full from host memory.

Refused: the embedding of a tied model on the host alone: the head reads all of it in every step.
"""

import logging
from collections.abc import Callable

import torch
from rich.filesize import decimal
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.layers.embedding import FrozenEmbedding, HostEmbedding, scale_of
from tunesmith.layers.int8 import Int8Embedding, Int8Head, Int8Table
from tunesmith.models.placement import Placement
from tunesmith.models.swap import put_module

logger = logging.getLogger(__name__)


def place_tables(
    model: PreTrainedModel,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    device: torch.device,
    placement: Placement,
) -> set[str]:
    """Replace the embedding and the head of a model as the recipe's keys say, and print what that saves.

    Args:
        read: the tensor of a name of the model, on the CPU.
        dtype: that the model computes in.
        device: where it computes.
        placement: where they lie.

    Returns:
        Names of the weights that have found their place.

    Raises:
        ModelError: the embedding of a tied model asked onto the host, a head that is no linear layer, an embedding of a class
            that is not known, or weights with NaN or infinity.
    """
    placed: set[str] = set()
    if not placement.moves_tables:
        return placed
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    if type(head) is not nn.Linear or not isinstance(embedding, nn.Embedding):
        kinds = f"{type(head).__name__} and {type(embedding).__name__}"
        raise ModelError(
            f"{model.config.model_type}: head and embedding are {kinds}, expected a linear layer and an embedding",
            "remove base_head and train.embedding_on",
        )
    head_name, name = names[id(head)], names[id(embedding)]
    tied = head.weight is embedding.weight
    if tied and placement.base_head == "auto":
        raise ModelError(
            "train.embedding_on: host, but the output head of this model is the same table, and a step reads all of it",
            "add base_head: int8, which gives the GPU a head of its own in 8 bits; or set train.embedding_on: device",
        )
    size = embedding.weight.numel()
    # Names that count once the head is another: of a tied pair the checkpoint may hold either.
    scale, factor = scale_of(embedding, name), float(vars(embedding).get("scalar_embed_scale", 1.0))
    rows = None
    if placement.embedding_on == "host":
        rows = HostEmbedding(read(f"{name}.weight").to(dtype, copy=True))
        logger.info(f"embeddings: {name} stays in host memory, {decimal(size * dtype.itemsize)} less on a GPU")
    if placement.base_head == "int8":
        try:
            table = Int8Table(read(f"{head_name}.weight"), device)
        except ModelError as error:
            raise ModelError(f"{head_name}: {error.message}", error.hint) from error
        logger.info(f"head: {head_name} in 8 bits, {decimal(table.nbytes)} instead of {decimal(size * dtype.itemsize)}")
        put_module(model, head_name, Int8Head(table, head.bias))
        placed.add(f"{head_name}.weight")
        if tied and rows is None:
            rows = Int8Embedding(table, dtype)
    if rows is not None:
        frozen = FrozenEmbedding(rows, scale, factor).requires_grad_(False).train(embedding.training)
        put_module(model, name, frozen)
        placed.add(f"{name}.weight")
    return placed
