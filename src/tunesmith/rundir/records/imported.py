"""``import --json``: what became of every key of another tool's configuration.

Four lists that together name each key once or more: mapped, defaulted (absent there, and their default is not ours), dropped
(about speed or output alone) and refused (it changes what is trained, and there is no equivalent).
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from tunesmith.rundir.records.base import FileRecord, Record

Kind = Literal["mapped", "defaulted", "dropped", "refused"]


@dataclass(frozen=True, kw_only=True)
class ImportedKey(Record):
    """What became of a key.

    Attributes:
        key: the tool's name of it.
        value: in the file; None where it is absent.
        kind: which of the four lists it stands in.
        ours: the recipe's key, dotted; None where it has none.
        our_value: what the recipe says there.
        words: why, for people.
        hint: what to type, of a refused one.
        left_out: refused, and left out because it was named with --without.
        final: refused, and it cannot be left out.
    """

    key: str
    value: JsonValue
    kind: Kind
    ours: str | None = None
    our_value: JsonValue = None
    words: str = ""
    hint: str = ""
    left_out: bool = False
    final: bool = False


@dataclass(frozen=True, kw_only=True)
class Course(Record):
    """How a training walks over its rows.

    Attributes:
        rows: that are trained on.
        rows_per_step: rows of an optimizer step, on average.
        epochs: how often each row is trained on.
        steps: of the optimizer, altogether.
        warmup_steps: of these, steps in which the learning rate rises.
    """

    rows: int
    rows_per_step: float
    epochs: float
    steps: int
    warmup_steps: int


@dataclass(frozen=True, kw_only=True)
class Imported(FileRecord):
    """What ``import`` made of a configuration; ``import --json`` prints it.

    Attributes:
        source: the file.
        tool: that it was written for.
        recipe: the file that was written; None where a key is refused.
        keys: what became of each.
        differs: what is trained otherwise than there although every key has its place, a sentence each.
        before: the walk over the rows there; None where the rows could not be read.
        after: the walk here.
        tokens: how the tokens of the rows were counted.
        too_long: rows above the longest that is trained, which other tools cut in silence.
    """

    source: str
    tool: str
    recipe: str | None
    keys: tuple[ImportedKey, ...]
    differs: tuple[str, ...] = ()
    before: Course | None = None
    after: Course | None = None
    tokens: str = ""
    too_long: int = 0

    @property
    def refused(self) -> tuple[ImportedKey, ...]:
        """The keys that stand in the way of a recipe."""
        return tuple(key for key in self.keys if key.kind == "refused" and not key.left_out)
