"""What stands in a layer in the place of a weight that is streamed.

A file of its own, since ``layers/`` has to know it where nothing is streamed and nothing of a store is installed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.kernels.nf4 import NF4
    from tunesmith.memory.store import StoredWeight
    from tunesmith.memory.stream import Layers


@dataclass(frozen=True)
class StreamedWeight:
    """A weight whose bytes are somewhere else until they are asked for.

    Attributes:
        layers: who has them.
        number: of its layer.
        place: where it lies in its layer.
    """

    layers: "Layers"
    number: int
    place: "StoredWeight"

    def parts(self) -> "NF4":
        """For the kernels: valid until a weight of another layer is asked for."""
        return self.place.parts(self.layers.layer(self.number))
