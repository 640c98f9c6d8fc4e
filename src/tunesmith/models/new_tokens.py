"""New tokens on one model instance: their rows of embedding and head become weights that are trained.

The model is one whose tables have the rows already (``checkpoints/grow.py``). The rows begin as what the tables hold there.
They belong to the model as its last part, so that whoever asks a model for its first weight still gets a frozen one.

Shape suffixes: N rows, D hidden size.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.layers.embedding import FrozenEmbedding
from tunesmith.layers.int8 import Int8Head
from tunesmith.layers.new_rows import NewRows, RowsEmbedding, RowsHead, factor_of
from tunesmith.layers.whole_table import TableEmbedding
from tunesmith.models.swap import put_module

PART = "new_token_rows"


def add_new_rows(model: PreTrainedModel, first: int, count: int) -> dict[str, NewRows]:
    """Make the rows of new tokens trainable. Call it after ``add_lora``.

    Args:
        first: id of the first new token.
        count: how many there are.

    Returns:
        The rows by the full name of their table: those of the embedding, and of a head that is a table of its own.

    Raises:
        ModelError: the tables have fewer rows, or are of a kind that is not known.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding | FrozenEmbedding) or not isinstance(head, nn.Linear | Int8Head):
        kinds = f"{type(embedding).__name__} and {type(head).__name__}"
        raise ModelError(f"chat.new_tokens: embedding and head are {kinds}, to which no rows are added", "use another model")
    if len(head.weight) < first + count:
        raise ModelError(
            f"the head has {len(head.weight)} rows, and the new tokens have the ids {first} to {first + count - 1}",
            "open the base with chat.new_tokens as it was trained with",
        )
    ids_N = torch.arange(first, first + count, device=head.weight.device)
    names = {id(module): name for name, module in model.named_modules()}
    factor = factor_of(embedding)
    with torch.no_grad():
        embedded_ND = embedding(ids_N).float() / factor
    tables = {names[id(embedding)]: NewRows(first, embedded_ND.clone())}
    own = tables[names[id(embedding)]]
    if not model.config.tie_word_embeddings:
        tables[names[id(head)]] = NewRows(first, _head_rows(head, ids_N))
    of_head = tables.get(names[id(head)], own)
    put_module(model, names[id(embedding)], RowsEmbedding(embedding, own, factor).train(embedding.training))
    put_module(model, names[id(head)], RowsHead(head, of_head).train(head.training))
    hold_rows(model, tables.values())
    return tables


def hold_rows(model: PreTrainedModel, tables: Iterable[NewRows]) -> None:
    """Make trained rows the last part of a model."""
    part = nn.Module()
    for number, rows in enumerate(tables):
        part.register_module(str(number), rows)
    model.register_module(PART, part)


def trains_embedding(model: PreTrainedModel) -> bool:
    """Whether rows of the embedding get a gradient."""
    return isinstance(model.get_input_embeddings(), RowsEmbedding | TableEmbedding)


def _head_rows(head: nn.Linear | Int8Head, ids_N: Tensor) -> Tensor:
    """Rows of a head, fp32."""
    if isinstance(head, Int8Head):
        return head.table.picked(ids_N).float()
    return head.weight.detach()[ids_N].float()
