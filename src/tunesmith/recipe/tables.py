"""What architectures call the two tables with a row a token, the embedding and the output head.

Names and not modules, so that a recipe or an adapter's configuration can be judged before a model is there.
"""

from collections.abc import Iterable
from typing import Literal

EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
HEADS = ("lm_head", "embed_out")
BOTH = (EMBEDDINGS[0], HEADS[0])
ONE_TABLE = "chat.new_tokens: lora.modules_to_save names one of two tables; in the other, new rows would stay as they are"
Table = Literal["embedding", "head"]


def table_of(name: str) -> Table | None:
    """Which table a module is by its name, full or not; None for any other module."""
    leaf = name.rpartition(".")[2]
    return "embedding" if leaf in EMBEDDINGS else "head" if leaf in HEADS else None


def tables_of(names: Iterable[str]) -> tuple[Table, ...]:
    """The tables among some modules, the embedding first.

    Raises:
        ValueError: a module that is neither.
    """
    found = {name: table_of(name) for name in names}
    if odd := next((name for name, table in found.items() if table is None), None):
        raise ValueError(
            f"modules_to_save: {odd!r} is no table with a row a token; only the embedding and the output head are trained "
            f"whole: {', '.join(BOTH)}; linear layers get adapters (lora.target_modules), norms stay frozen"
        )
    tables: tuple[Table, ...] = ("embedding", "head")
    return tuple(table for table in tables if table in found.values())
