"""Who answered which test part: the lines of a ledger (``rundir/ledger.py``), and what a verdict says of them.

Written once a reading and never changed. A line goes by its own version, since a ledger outlives many runs.
"""

from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import FileRecord, Record

Kind = Literal["tuned", "prompt"]


@dataclass(frozen=True, kw_only=True)
class TestPart(FileRecord):
    """The first line of a ledger's file: which rows the readings below are of.

    Attributes:
        key: hash of the rows, whatever their order.
        rows: hash of each row: of what its user turns ask and of its answer.
    """

    __test__ = False  # pytest: this is no test

    key: str
    rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TestReading(FileRecord):
    """Any other line of a ledger: one answering of a test part.

    Attributes:
        part: key of the test part.
        kind: whether an adapter answered, or a prompt.
        candidate: hash of the adapter, whatever form it was in; or of the model and the way to prompt it.
        arm: its name in the run.
        run: where the run lay.
        at: when the first question was about to be asked, UTC.
    """

    __test__ = False

    part: str
    kind: Kind
    candidate: str
    arm: str
    run: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Tries(Record):
    """What was scored on the test rows up to a verdict.

    Attributes:
        place: the adapter's among all that were scored on a test part with a row in common, 1 for the first; of several at once
            that of the first, or of the last where another run asked one of them before.
        tuned: how many there were at the time.
        prompts: distinct prompts.
        runs: run directories that they come from.
        at_once: candidates of this run, which share the certainty of the place.
        lacking: why the counts may be too low, for people; None where they are whole.
    """

    place: int = 1
    tuned: int = 1
    prompts: int = 0
    runs: int = 1
    lacking: str | None = None
    at_once: int = 1

    @property
    def line(self) -> str:
        """The counts, for people."""
        prompts = f"{self.prompts} prompt{'' if self.prompts == 1 else 's'}"
        where = "in this run" if self.runs == 1 else f"in {self.runs} runs"
        text = f"tuned candidate {self.place} of {self.tuned} on these test rows or some of them ({where}, with {prompts})"
        if self.at_once > 1:
            text = (
                f"{self.at_once} tuned candidates at once, of {text.partition(' of ')[2]}, so more certainty is asked of each"
            )
        elif self.place > 1:
            text += ", so more certainty is asked of it"
        return text if self.lacking is None else f"{text}; at least so many, for {self.lacking}"
