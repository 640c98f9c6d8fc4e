"""What is known of GPUs before one is there: memory, rates, and what an hour of one costs.

A data file with a date (``cards.json``), and each number says where it comes from: a data sheet, a price list, or nobody but
us (``assumed``). A prediction made from it can then be wrong in a place that has a name. Rates are of dense products added up
in fp32, and a data sheet's are reached by no product: ``share`` is what we take large ones to reach.

Refused: asking a machine. A card that is there is measured (``benchmarks/gpu.py``); this is for the choice of one to rent.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("cards.json")
Kind = Literal["datasheet", "listed", "assumed"]


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from.

    Attributes:
        kind: of a ``datasheet``, ``listed`` as a price, or ``assumed`` by us.
    """

    value: float
    kind: Kind
    source: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU.

    Attributes:
        aliases: its names as ``nvidia-smi`` says them.
        capability: of CUDA.
        memory_bytes: of the device.
        bandwidth: of its memory, bytes a second.
        link: to the host, bytes a second of pinned copies.
        fp16, bf16: dense products added up in fp32, FLOP a second; no ``bf16`` where the chip has none.
        share: of that rate, reached by large products.
        launch: seconds of the host for a kernel.
        rent: USD an hour; None where no source was at hand.
    """

    name: str
    aliases: tuple[str, ...]
    capability: tuple[int, int]
    memory_bytes: Figure
    bandwidth: Figure
    link: Figure
    fp16: Figure
    bf16: Figure | None
    share: Figure
    launch: Figure
    rent: Figure | None

    @property
    def compute(self) -> Literal["bf16", "fp16"]:
        """Dtype of the products of a training on it."""
        return "fp16" if self.bf16 is None else "bf16"

    @property
    def product(self) -> float:
        """FLOP a second that large products are taken to reach."""
        return (self.bf16 or self.fp16).value * self.share.value


@functools.cache
def cards() -> tuple[Card, ...]:
    """All cards of the file, the smallest first."""
    return tuple(_card(entry) for entry in json.loads(FILE.read_text(encoding="utf-8"))["cards"])


def as_of() -> str:
    """The day on which the file was last gone through."""
    return json.loads(FILE.read_text(encoding="utf-8"))["date"]


def find_card(name: str) -> Card | None:
    """The card of a name, ours or ``nvidia-smi``'s, in letters of any case; None where it is not in the file."""
    wanted = name.strip().casefold()
    return next((card for card in cards() if wanted in {other.casefold() for other in (card.name, *card.aliases)}), None)


def _card(entry: dict[str, Any]) -> Card:
    figures = {name: None if value is None else Figure(**value) for name, value in entry.items() if name not in _WORDS}
    name, aliases, (major, minor) = (entry[word] for word in _WORDS)
    return Card(name=name, aliases=tuple(aliases), capability=(major, minor), **figures)  # type: ignore[arg-type]


_WORDS = ("name", "aliases", "capability")
