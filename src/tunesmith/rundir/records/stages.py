"""``stages.json``, ``manifest.json`` and what ``tunesmith status`` says: what was done, from what, and what came out."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from tunesmith.notebook import paragraph, table
from tunesmith.rundir.records.base import FileRecord, Record

Parts = dict[str, JsonValue]  # named inputs of a stage: a recipe key, a file's sha256, a fingerprint of the base


@dataclass(frozen=True, kw_only=True)
class FileState(Record):
    """One output file as the stage left it.

    Attributes:
        sha256: of its bytes, hexadecimal.
        bytes: its size.
        mtime_ns, ctime_ns: its times; while size and times are these, the file is not hashed again.
    """

    sha256: str
    bytes: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """A stage that was finished.

    Attributes:
        inputs: what it was made from, by name.
        outputs: what it made, by path below the run directory.
        began: ISO time.
        seconds: wall time.
        peak_bytes: largest resident size of the process and its children.
    """

    inputs: Parts
    outputs: dict[str, FileState]
    began: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Journal(FileRecord):
    """``export/.ready/whole.json``: what is being put in the place of what was there.

    Attributes:
        inputs: what the new content was made from, by name.
        names: its files and directories.
    """

    inputs: Parts
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Stages(FileRecord):
    """``stages.json``.

    Attributes:
        stages: what was finished, by the stage's name.
    """

    stages: dict[str, StageRecord] = field(default_factory=dict[str, StageRecord])


@dataclass(frozen=True, kw_only=True)
class StageState(Record):
    """How a stage stands now.

    Attributes:
        stage: its name.
        state: ``done``; ``never`` run here; ``stale``, made from other inputs; ``broken``, an output is gone or altered;
            ``waiting`` for a stage before it that is none of the first.
        why: a sentence each, for people.
        seconds: how long it took when it was run last; None where it was not.
        peak_bytes: likewise.
    """

    stage: str
    state: Literal["done", "never", "stale", "broken", "waiting"]
    why: tuple[str, ...] = ()
    seconds: float | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Status(FileRecord):
    """What ``tunesmith status`` says of a run.

    Attributes:
        run: the directory.
        stages: how each stands, in the order of a run.
        writer: who writes it at this moment, None for nobody.
    """

    run: str
    stages: tuple[StageState, ...]
    writer: str | None = None

    def __getitem__(self, stage: str) -> StageState:
        """The state of a stage by its name."""
        return next(state for state in self.stages if state.stage == stage)

    def _repr_html_(self) -> str:
        """Every stage in order, its state, why, and how long it took."""
        rows = [
            (entry.stage, entry.state, "" if entry.seconds is None else f"{entry.seconds:,.1f}", "; ".join(entry.why))
            for entry in self.stages
        ]
        writer = "" if self.writer is None else paragraph(f"{self.run} is being written by {self.writer}")
        return table(("stage", "state", "seconds", "why"), rows, self.run) + writer
