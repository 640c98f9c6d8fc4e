"""Where the embedding table lies that feeds every layer, and any other table that is asked for.

Some small models have a table of one vector a token *and layer* (``Family.per_layer_embeddings``), which is half of their
weights. It is frozen, never adapted, and only its rows are read: on a GPU it stays in host memory unless the recipe says
otherwise. ``nf4`` quantises it a row at a time, in blocks of 64; a width that is no multiple of 64 is filled up with zeros.

Refused: NF4 by default. The rows of a token reach every layer unmixed, and host memory costs no precision.

Cost: see ``layers/embedding.py``. Quantising 2.3 billion weights takes about 5 s, once a load.

Source: ``get_per_layer_inputs`` in the models of transformers 5.23 that have such a table.

Shape suffixes: V vocabulary, D hidden size.
"""

import logging
from collections.abc import Iterable
from typing import Literal

import torch
from rich.filesize import decimal
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.families import FAMILIES
from tunesmith.layers.embedding import FrozenEmbedding, HostEmbedding, scale_of
from tunesmith.layers.nf4 import NF4Embedding
from tunesmith.models.swap import put_module

logger = logging.getLogger(__name__)

Place = Literal["cpu", "nf4", "model"]


def per_layer_table(model_type: str, weights: Iterable[str]) -> str | None:
    """Full name of the embedding that feeds every layer; None for a model without one.

    Args:
        model_type: of the text model.
        weights: names of the model's tensors.
    """
    family = FAMILIES.get(model_type)
    if family is None or family.per_layer_embeddings is None:
        return None
    ending = f".{family.per_layer_embeddings}.weight"
    return next((name.removesuffix(".weight") for name in weights if name.endswith(ending)), None)


def place_of(setting: str, table: str | None, device: torch.device) -> Place:
    """Where the per-layer table of a model is to lie.

    Args:
        setting: ``recipe.per_layer_embeddings``.
        table: full name of the table, None for a model without one.
        device: where the model computes.

    Raises:
        ModelError: ``cpu`` or ``nf4`` asked of a model without such a table.
    """
    if setting == "auto":
        return "cpu" if table is not None and device.type != "cpu" else "model"
    if setting == "model":
        return "model"
    if table is None:
        raise ModelError(
            f"per_layer_embeddings: {setting}, but the model has no table that feeds every layer",
            "remove the key, or write auto",
        )
    return "nf4" if setting == "nf4" else "cpu"


def stock_table(model: nn.Module, name: str) -> nn.Embedding:
    """The embedding of this name in a model as it was built.

    Raises:
        ModelError: none there, as where ``config.json`` is that of a model without the table that its weights have.
    """
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Embedding):
        kind = "no such module" if module is None else f"a {type(module).__name__}"
        raise ModelError(
            f"{name}: {kind} in the model that config.json describes, expected an embedding: the weights have a table there",
            "does config.json belong to the weights?",
        )
    return module


def hold_table(model: nn.Module, name: str, table_VD: Tensor, dtype: torch.dtype, place: Literal["cpu", "nf4"]) -> None:
    """Replace a stock embedding by one that lies in host memory or in NF4, and print what that saves.

    Args:
        name: full name of the ``nn.Embedding``, plain or scaled; its weight may still be without memory.
        table_VD: the table, on the CPU, in the precision to quantise from; ``cpu`` holds it, without a copy if it can.
        dtype: of the output.

    Raises:
        ModelError: no embedding there, another class of it, another shape, a table that a head shares, or one with NaN or
            infinity.
    """
    stock = stock_table(model, name)
    if sum(parameter is stock.weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1:
        raise ModelError(f"{name}: the output head shares this table, which it reads dense", "leave it as it is")
    if table_VD.shape != stock.weight.shape:
        shape, expected = tuple(table_VD.shape), tuple(stock.weight.shape)
        raise ModelError(f"{name}: shape {shape}, expected {expected}", "does config.json belong to the weights?")
    dense = table_VD.numel() * dtype.itemsize
    if place == "cpu":
        rows = HostEmbedding(table_VD.to(dtype))
        logger.info(f"embeddings: {name} stays in host memory, {decimal(dense)} less on the device")
    else:
        try:
            rows = NF4Embedding(table_VD)
        except ModelError as error:
            raise ModelError(f"{name}: {error.message}", error.hint) from error
        rows.weight.dtype = dtype  # of the rows; the codes are those of the table as it came
        nbytes = rows.weight.nbytes
        logger.info(f"embeddings: {name} in NF4, {decimal(nbytes)} instead of {decimal(dense)}")
    put_module(model, name, FrozenEmbedding(rows, scale_of(stock, name)).requires_grad_(False).train(stock.training))
