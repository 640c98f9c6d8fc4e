"""``lora.modules_to_save`` on one model instance: the embedding, the head or both become weights that are trained.

**Tied tables.** A model whose head is its embedding keeps one table: whichever of the two is named, one copy is trained and
both read it. That is PEFT's ``ensure_weight_tying: true``, which the adapter says, and every file made of it has one table. By
default PEFT trains two copies that go apart, or trains one and leaves the other as it was, which no tied checkpoint can hold.
An adapter that somebody trained so is read as it is (``tie=False``), and merging gives the model a head of its own.

Refused: a head with a bias, which PEFT would train too; tables in 8 bits or in host memory.

Shape suffixes: V vocabulary, D hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.layers.new_rows import factor_of
from tunesmith.layers.whole_table import TableEmbedding, TableHead, WholeTable
from tunesmith.models.new_tokens import hold_rows
from tunesmith.models.swap import put_module
from tunesmith.recipe.tables import Table, tables_of


def add_whole_tables(model: PreTrainedModel, names: Sequence[str], *, tie: bool = True) -> dict[str, WholeTable]:
    """Make tables trainable. Call it after ``add_lora``.

    Args:
        names: of modules, full or not; none does nothing.
        tie: one copy for a head and an embedding that are one table; else a copy for each that is named.

    Returns:
        The copies by the full name of their module, that of the embedding where it is both.

    Raises:
        ModelError: a name that is not the model's, or a table that is not dense where the model computes.
    """
    if not names:
        return {}
    asked = tables_of(names)
    modules: dict[Table, nn.Module | None] = {
        "embedding": model.get_input_embeddings(),
        "head": model.get_output_embeddings(),
    }
    full = {id(module): name for name, module in model.named_modules()}
    places = {kind: full.get(id(module), "none") for kind, module in modules.items()}
    if odd := [name for name in names if not any(f".{place}".endswith(f".{name}") for place in places.values())]:
        raise ModelError(
            f"lora.modules_to_save: {model.config.model_type} has no {odd[0]}",
            f"its embedding is {places['embedding']}, its head {places['head']}",
        )
    is_one = tie and bool(model.config.tie_word_embeddings)
    wanted: tuple[Table, ...] = ("embedding", "head") if is_one else asked
    dense = {kind: _dense(places[kind], modules[kind]) for kind in wanted}
    tables: dict[str, WholeTable] = {}
    for kind, base in dense.items():
        if is_one and tables:
            table = tables[places["embedding"]]
        else:
            weight_VD = base.weight.detach()
            copy_VD = weight_VD.to(torch.promote_types(weight_VD.dtype, torch.float32), copy=True)
            table = tables[places[kind]] = WholeTable(copy_VD, places["head"] if is_one else None)
        put_module(model, places[kind], _trained(base, table).train(base.training))
    hold_rows(model, tables.values())
    return tables


def trains_both(tables: Mapping[str, WholeTable]) -> bool:
    """Whether embedding and head are trained, as two tables or as one."""
    return len(tables) == 2 or any(table.twin is not None for table in tables.values())


def _dense(name: str, module: nn.Module | None) -> nn.Embedding | nn.Linear:
    """A table that can be copied.

    Raises:
        ModelError: it cannot.
    """
    if not isinstance(module, nn.Embedding | nn.Linear):
        raise ModelError(
            f"lora.modules_to_save: {name} is a {type(module).__name__}, expected a table in the dtype of the products",
            "leave base_head: auto and train.embedding_on: device, or lora.modules_to_save out",
        )
    if isinstance(module, nn.Linear) and module.bias is not None:
        raise ModelError(
            f"lora.modules_to_save: {name} has a bias, which PEFT would train too and nothing here does",
            "name the embedding alone",
        )
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise ModelError(f"lora.modules_to_save: {name} renorms its rows as they are read", "leave it out")
    return module


@torch.no_grad()
def _trained(base: nn.Embedding | nn.Linear, table: WholeTable) -> nn.Module:
    if isinstance(base, nn.Linear):
        return TableHead(base, table)
    dtype = base(torch.zeros(1, dtype=torch.int64, device=base.weight.device)).dtype
    factor = factor_of(base)
    if dtype == base.weight.dtype:  # the base's rows are multiplied by it as that dtype has it
        factor = float(torch.tensor(factor, dtype=dtype))
    return TableEmbedding(base, table, factor, dtype)
