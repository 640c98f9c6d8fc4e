"""``data/split.json``, ``data/rendered.json`` and ``data/left_out.jsonl``: which row is where, and what became of it.

The rows themselves are no records (``rundir/rows.py`` says why).
"""

from dataclasses import dataclass, field
from typing import Literal

from tunesmith.rundir.records.base import FileRecord, Record


@dataclass(frozen=True, kw_only=True)
class PartIds(Record):
    """Ids of the rows of each part.

    Attributes:
        train, dev, test: in reading order.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PartGroups(Record):
    """Group keys of the parts that are kept for good.

    Those of train are not written: a train row is known by its id, and a group that has lost all its rows is drawn anew.

    Attributes:
        dev, test: 16 hexadecimal digits each, sorted.
    """

    dev: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Split(FileRecord):
    """``data/split.json``: the split, and what it was drawn with; another run's ``data.earlier_split`` keeps to it.

    Attributes:
        seed, test_fraction, dev_fraction: the recipe's.
        parts: row ids by part.
        groups: group keys of dev and test.
    """

    seed: int
    test_fraction: float
    dev_fraction: float
    parts: PartIds
    groups: PartGroups


@dataclass(frozen=True, kw_only=True)
class LeftOut(Record):
    """A line of ``data/left_out.jsonl``: a row that no model sees.

    Attributes:
        id, place: of the row.
        reason: why it is left out, for people.
        hint: what to do about it; empty where only ``train.max_length`` is in its way.
        tokens: its whole length; 0 where it could not be rendered.
    """

    id: str
    place: str
    reason: str
    hint: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Replayed(Record):
    """A line of ``data/replay.jsonl``: what the base model wrote, which training mixes in.

    Attributes:
        id: of the prompt.
        kind: a request, asked as chat, or the beginning of a text.
        prompt: its text.
        written: what followed, as far as the limit of tokens let it go.
    """

    id: str
    kind: Literal["request", "beginning"]
    prompt: str
    written: str


@dataclass(frozen=True, kw_only=True)
class RenderedPart(FileRecord):
    """What rendering one part came to; it stands beside the token ids in the cache.

    Attributes:
        rows: that were rendered.
        longest: tokens of the longest.
        longest_answer: tokens of the longest last answer, its end of turn included.
        notes: sentence -> rows of which it is to be said.
        left_out: the rows that were not rendered.
    """

    rows: int
    longest: int
    longest_answer: int
    notes: dict[str, int] = field(default_factory=dict[str, int])
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rendered(FileRecord):
    """``data/rendered.json``: lengths in tokens, and what was derived from them.

    Attributes:
        train_tokens: of the train part.
        supervised_tokens: of those, trained on.
        longest: tokens of the longest row of train and dev.
        max_new_tokens: that an answer may take; the recipe's, else derived from the longest train answer.
        left_out: rows of train and dev that were not rendered; ``data/left_out.jsonl`` lists them.
        new_tokens: of the recipe that the vocabulary lacked -> how often each is supervised in train.
    """

    train_tokens: int
    supervised_tokens: int
    longest: int
    max_new_tokens: int
    left_out: int
    new_tokens: dict[str, int] = field(default_factory=dict[str, int])
