"""What ``tunesmith runs`` answers: the runs of a folder beside each other."""

from dataclasses import dataclass
from typing import Literal

from tunesmith.formatting import percent, points, points_between
from tunesmith.notebook import Interval, forest, table
from tunesmith.rundir.records.base import FileRecord, Record

State = Literal["done", "outdated", "running", "failed", "not finished"]


@dataclass(frozen=True, kw_only=True)
class ArmFigure(Record):
    """An arm's score on the sealed test part.

    Attributes:
        name: of the arm.
        score: the metric's headline.
        low, high: its 95 % interval.
    """

    name: str
    score: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Outcome(Record):
    """A run's verdict.

    Attributes:
        decision: its words.
        exit_code: of the command.
        reason: in a sentence.
        candidate: the arm that would be deployed.
        best_prompt: the strongest rival.
        gain: of the candidate over it.
        low, high: interval of the gain.
        arms: figures of every arm.
    """

    decision: str
    exit_code: int
    reason: str
    candidate: str
    best_prompt: str
    gain: float
    low: float
    high: float
    arms: tuple[ArmFigure, ...]

    def arm(self, name: str) -> ArmFigure:
        """The figures of an arm."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True, kw_only=True)
class RunEntry(Record):
    """One run.

    Attributes:
        name: of its directory.
        path: of it.
        model: as the recipe names it.
        metric: its name.
        data: hash of the rows; None before they were read.
        state: ``outdated`` where the verdict is not of what is there now.
        why: what is missing or failed, in a line; empty where it is done.
        outcome: the verdict; None without one.
        began: of the first stage, ISO time; None before it.
        seconds: of all stages together.
        against: the run that keys and rows are compared with; None for none.
        changed: keys that differ from it: ``train.learning_rate 0.0002 -> 0.001``.
        same_data: whether its rows are the same; None where one of the two has none yet.
        repeats: an earlier run with the same keys and rows; None for none.
    """

    name: str
    path: str
    model: str
    metric: str
    data: str | None
    state: State
    why: str
    outcome: Outcome | None
    began: str | None
    seconds: float
    against: str | None = None
    changed: tuple[str, ...] = ()
    same_data: bool | None = None
    repeats: str | None = None


@dataclass(frozen=True, kw_only=True)
class NotARun(Record):
    """A directory that could not be read as a run.

    Attributes:
        path: of it.
        reason: in a line.
    """

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Runs(FileRecord):
    """What ``tunesmith runs`` answers.

    Attributes:
        folder: that was looked at.
        runs: in the order that was asked for.
        others: directories in it that are no runs, or broken ones.
    """

    folder: str
    runs: tuple[RunEntry, ...]
    others: tuple[NotARun, ...]

    def gains(self) -> list[Interval]:
        """The gain of every run that has a verdict, in points."""
        return [
            Interval(
                name=entry.name,
                value=100.0 * outcome.gain,
                low=100.0 * outcome.low,
                high=100.0 * outcome.high,
                figures=f"{points(outcome.gain)} ({points_between(outcome.low, outcome.high)})",
                is_chosen=outcome.decision == "deploy",
            )
            for entry in self.runs
            if (outcome := entry.outcome) is not None
        ]

    def _repr_html_(self) -> str:
        """Every run with its verdict, and the gains as a picture."""
        head = ("run", "verdict", "score", "gain", "data", "changed")
        rows = [
            (
                entry.name,
                entry.state if outcome is None else outcome.decision,
                "" if outcome is None else percent(outcome.arm(outcome.candidate).score),
                "" if outcome is None else f"{points(outcome.gain)} ({points_between(outcome.low, outcome.high)})",
                entry.data,
                "; ".join(entry.changed),
            )
            for entry in self.runs
            for outcome in (entry.outcome,)
        ]
        lines = self.gains()
        return (forest(lines, 0.0, "points over the best prompt") if lines else "") + table(head, rows, self.folder)
