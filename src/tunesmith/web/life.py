"""A run's events folded into how it stands: stages, bars, warnings, arms, and the table of training steps.

A page needs the sum of what happened, not the list, so each event is taken once and forgotten. The table of steps keeps every
figure of every step, eight bytes each (100,000 steps take 6 MB), because a training that goes back after a spike takes steps
away again, which means over steps that are thinned already cannot. The picture is thinned when it is drawn (``charts.py``).

Refused: reading the file anew for each look (a second for 100,000 steps, each second); a database beside the run, which whoever
only looks must not write.
"""

import math
import threading
from array import array
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from tunesmith.errors import RunError
from tunesmith.rundir import RunDir
from tunesmith.rundir.events import LineReader
from tunesmith.rundir.lock import writer_of
from tunesmith.rundir.records.events import (
    ArmScore,
    Decision,
    Event,
    Metric,
    ProcessStart,
    Progress,
    StageEnd,
    StageStart,
    WarningLine,
    parse_event,
)

TRAIN = "train"
FIGURES = ("loss", "dev_loss", "grad_norm", "learning_rate", "tokens", "seconds")  # that are shown
BLOCK = 1 << 20  # bytes of events that are read at once
WARNINGS = 50  # that are kept

Outcome = Literal["running", "done", "failed", "interrupted", "killed"]


@dataclass(frozen=True)
class Bar:
    """A bar that is open.

    Attributes:
        stage, title, done, total, note: as its last event says.
        began, at: seconds since the epoch, of its first event and its last.
        before: what was done when it opened.
    """

    stage: str
    title: str
    done: int
    total: int
    note: str
    began: float
    at: float
    before: int

    @property
    def seconds_left(self) -> float | None:
        """At the pace since it opened; None where nothing was done yet."""
        done = self.done - self.before
        return (self.at - self.began) / done * max(0, self.total - self.done) if done > 0 else None


@dataclass(frozen=True)
class StageRun:
    """The last time that a stage was made.

    Attributes:
        began, ended: seconds since the epoch.
        outcome: ``killed`` where its process is gone and did not end it.
        error: its message where it failed.
    """

    name: str
    began: float
    ended: float | None = None
    outcome: Outcome = "running"
    error: str = ""


class Steps:
    """The table of the training, a column a figure; NaN: not measured; infinite: measured, and no finite number."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.columns = {name: array("d") for name in FIGURES}

    def clear(self) -> None:
        """Begin anew."""
        self._cut(0)

    def add(self, event: Metric) -> None:
        """Add a step. One that is said again takes the place of the first one and of all after it."""
        kept = len(self.steps)
        while kept and self.steps[kept - 1] >= event.step:
            kept -= 1
        self._cut(kept)
        self.steps.append(event.step)
        for name, column in self.columns.items():
            value = event.figures.get(name, math.nan)
            column.append(math.inf if value is None else value)

    def _cut(self, length: int) -> None:
        for column in (self.steps, *self.columns.values()):
            del column[length:]


@dataclass
class Life:
    """How a run stands, by its events.

    Attributes:
        process: the number of the last process that wrote; None before the first.
        stages: the last time of each, by name, in the order in which they began; those of runs inside the run left out.
        bars: that are open, by title.
        warnings: the newest, and how many there were.
        arms: scored, by name, in the order of the events.
        decision: the gate's, if the stage has not begun again since.
        damage: what is wrong with the first line that is no event.
        last_at: seconds since the epoch, of the last event.
    """

    process: int | None = None
    stages: dict[str, StageRun] = field(default_factory=dict[str, StageRun])
    bars: dict[str, Bar] = field(default_factory=dict[str, Bar])
    warnings: deque[WarningLine] = field(default_factory=lambda: deque[WarningLine](maxlen=WARNINGS))
    warned: int = 0
    arms: dict[str, ArmScore] = field(default_factory=dict[str, ArmScore])
    decision: Decision | None = None
    steps: Steps = field(default_factory=Steps)
    damage: str = ""
    last_at: float = 0.0

    def take(self, event: Event) -> None:
        """Bring it forward by one event."""
        self.last_at = _seconds(event.at)
        match event:
            case ProcessStart():
                self.process = event.process
                self.bars.clear()
                for run in self.open_stages():
                    self.stages[run.name] = replace(run, outcome="killed")
            case StageStart() | StageEnd() if "/" in event.stage:
                return
            case StageStart():
                self._begin(event)
            case StageEnd():
                self.bars.clear()
                run = self.stages.get(event.stage, StageRun(event.stage, self.last_at - event.seconds))
                self.stages[event.stage] = replace(run, ended=self.last_at, outcome=event.outcome, error=event.error)
            case Progress():
                self._move(event)
            case Metric() if event.stage == TRAIN:
                self.steps.add(event)
            case Metric():
                return
            case WarningLine():
                self.warnings.append(event)
                self.warned += 1
            case ArmScore() if "/" not in event.stage:
                self.arms[event.arm] = event
            case ArmScore():
                return
            case Decision():
                self.decision = event

    def open_stages(self) -> list[StageRun]:
        """Stages that were begun and not ended."""
        return [run for run in self.stages.values() if run.outcome == "running"]

    @property
    def last_stage(self) -> StageRun | None:
        """The stage that began last."""
        return next(reversed(self.stages.values()), None)

    def _begin(self, event: StageStart) -> None:
        self.stages.pop(event.stage, None)
        self.stages[event.stage] = StageRun(event.stage, self.last_at)
        if event.stage == TRAIN:
            self.steps.clear()
        if event.stage == "verdict":
            self.decision = None
        if event.stage.startswith("evaluate "):
            self.arms.pop(event.stage.removeprefix("evaluate "), None)

    def _move(self, event: Progress) -> None:
        if event.is_last:
            self.bars.pop(event.title, None)
            return
        known = self.bars.get(event.title)
        began, before = (self.last_at, event.done) if known is None else (known.began, known.before)
        self.bars[event.title] = Bar(event.stage, event.title, event.done, event.total, event.note, began, self.last_at, before)


Standing = Literal["running", "killed", "failed", "stopped", "done", "not finished", "not begun"]


def standing(life: Life, writer: str | None, is_decided: bool) -> Standing:
    """How a run stands, in a word.

    Args:
        writer: who holds its lock.
        is_decided: whether its verdict is there.
    """
    if writer is not None:
        return "running"
    if life.open_stages():
        return "killed"
    last = life.last_stage
    if last is not None and last.outcome in ("failed", "interrupted", "killed"):
        return {"failed": "failed", "interrupted": "stopped", "killed": "killed"}[last.outcome]  # type: ignore[return-value]
    if is_decided:
        return "done"
    return "not begun" if last is None else "not finished"


class Feed:
    """The life of one run, brought forward whenever somebody looks; any number of threads may."""

    def __init__(self, run: RunDir):
        self.run = run
        self._lock = threading.Lock()
        self._reader = LineReader(run.events_file)
        self._life = Life()
        self._line = 0

    @contextmanager
    def look(self) -> Generator[tuple[Life, str]]:
        """The life as it is now, and where its file was read to (``position_of``); nobody else moves it in the block."""
        with self._lock:
            self._read()
            yield self._life, position_of(self._reader)

    def standing(self) -> Standing:
        """How the run stands."""
        writer = writer_of(self.run.path)
        with self.look() as (life, _):
            return standing(life, writer, self.run.verdict_file.exists())

    def _read(self) -> None:
        while True:
            is_anew, lines = self._reader.new(BLOCK)
            if is_anew:
                self._life, self._line = Life(), 0
            if not lines:
                return
            for line in lines:
                self._line += 1
                try:
                    self._life.take(parse_event(line, f"{self.run.events_file.name}, line {self._line}"))
                except RunError as error:
                    self._life.damage = self._life.damage or error.message


def position_of(reader: LineReader) -> str:
    """Where a reader stands in which file, as the id of an event of a stream."""
    device, inode = reader.file or (0, 0)
    return f"{device:x}-{inode:x}-{reader.offset}"


def place_reader(reader: LineReader, position: str) -> bool:
    """Put a reader where a position says; False where it is none."""
    parts = position.split("-")
    try:
        device, inode, offset = int(parts[0], 16), int(parts[1], 16), int(parts[2])
    except (ValueError, IndexError):
        return False
    reader.file, reader.offset = (device, inode), offset
    return offset >= 0


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
