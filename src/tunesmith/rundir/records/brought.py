"""``brought.json``: the tuned models that a run was given in the place of training, and what was found of each."""

from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import FileRecord, Record


@dataclass(frozen=True, kw_only=True)
class BroughtModel(Record):
    """A tuned model that somebody else trained.

    Attributes:
        name: of the candidate.
        kind: its form.
        place: where it lay, or the address of an endpoint.
        key: what tells it from all other candidates; of an endpoint its address and the model's name there.
        files: sha256 of each file that it is loaded from, by name; none of an endpoint.
        tool: what seems to have written it; None where nothing says so.
        rank, scale: of an adapter; None of other forms.
        targets: weights that an adapter changes; None of other forms.
        notes: what differs from the base, and what was converted, a line each.
    """

    name: str
    kind: Literal["adapter", "merged", "gguf", "endpoint"]
    place: str
    key: str
    files: dict[str, str]
    tool: str | None = None
    rank: int | None = None
    scale: float | None = None
    targets: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Brought(FileRecord):
    """All of them.

    Attributes:
        models: in the recipe's order.
    """

    models: tuple[BroughtModel, ...]

    def named(self, name: str) -> BroughtModel:
        """The one of a name."""
        return next(model for model in self.models if model.name == name)
