"""Where the large parts of a model lie while it trains: what a recipe says of it, and what one process of several says.

The keys are of different sections of the recipe and meet where weights are read (``models/load.py``). They say which memory
holds a weight, and of two tables what it is kept in.
"""

from dataclasses import dataclass

Resident = int | str
"""How many of the first decoder layers stay on the device; ``all`` for a model that is not streamed."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the parts lie; without arguments all of them are where the model computes.

    Attributes:
        per_layer_embeddings: where the table that feeds every layer lies, as in the recipe.
        embedding_on: where the embedding lies, ``recipe.train.embedding_on``.
        base_head: what the output head is kept in, as in the recipe.
        resident_layers: how many of the first decoder layers stay on the device, ``recipe.train.resident_layers``.
        shard: whether the processes that were launched together share out the layers that do not stay, all of them where
            ``resident_layers`` is ``all``; ``recipe.train.shard``.
    """

    per_layer_embeddings: str = "auto"
    embedding_on: str = "device"
    base_head: str = "auto"
    resident_layers: Resident = "all"
    shard: bool = False

    @property
    def moves_tables(self) -> bool:
        """Whether the embedding or the head lies otherwise than in the stock model."""
        return self.embedding_on != "device" or self.base_head != "auto"

    @property
    def streams(self) -> bool:
        """Whether decoder layers come from elsewhere when they are needed."""
        return self.shard or isinstance(self.resident_layers, int)

    @property
    def resident(self) -> int:
        """How many decoder layers stay where others do not."""
        return self.resident_layers if isinstance(self.resident_layers, int) else 0


EVERYTHING_HERE = Placement()
