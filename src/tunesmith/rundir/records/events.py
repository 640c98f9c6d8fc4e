"""What happens in a run, one record an event: the lines of ``events.jsonl``.

Bars, pages, servers and trackers are drawn from these and from nothing else. Every event says when it happened and in which
stage; ``kind`` says which record a line is. A process that begins to write puts a ``ProcessStart`` before its first event: it
names the version of the file's form, and tells a reader that what an earlier process left open will not be closed.

    {"at": "2026-11-28T11:04:05.123+00:00", "stage": "train", "kind": "progress", "title": "training", "done": 12, ...}

Refused: a log of free text, which a page would have to parse; one record with optional fields for all kinds, whose combinations
nobody checks.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaValue

from tunesmith.errors import RunError
from tunesmith.rundir.records.base import Record

VERSION = 1


def utc_now() -> str:
    """The time, ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class EventRecord(Record):
    """What every event says.

    Attributes:
        at: when, ISO 8601 in UTC.
        stage: the stage in which it happened, with those around it (``seeds/train``); empty outside of stages, and filled in
            by ``tracking.emit``.
    """

    at: str = field(default_factory=utc_now)
    stage: str = ""


@dataclass(frozen=True, kw_only=True)
class ProcessStart(EventRecord):
    """A process begins to write.

    Attributes:
        process: its number.
        version: of the form of the lines that follow.
    """

    VERSION: ClassVar[int] = VERSION

    kind: Literal["process start"] = "process start"
    process: int
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class StageStart(EventRecord):
    """A stage begins.

    Attributes:
        reason: why it is run: what is missing or changed.
    """

    kind: Literal["stage start"] = "stage start"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class StageEnd(EventRecord):
    """A stage ends; the last event of its stage.

    Attributes:
        outcome: how.
        seconds: that it took.
        error: the message, where it failed.
    """

    kind: Literal["stage end"] = "stage end"
    outcome: Literal["done", "failed", "interrupted"]
    seconds: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress(EventRecord):
    """How far a bar is.

    Attributes:
        title: of the bar; no two are open under one title.
        done: units of work.
        total: units of work.
        note: figures to show with it (loss, tokens/s).
        is_last: the bar is closed, whether all was done or not.
    """

    kind: Literal["progress"] = "progress"
    title: str
    done: int
    total: int
    note: str = ""
    is_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Metric(EventRecord):
    """Figures of one training step.

    Those since the last start of their stage are the whole of ``metrics.jsonl``: a training that goes on from a checkpoint says
    the checkpoint's steps again, so a reader never puts together what belongs to two recipes. A step that is said again within
    a stage takes the place of the first one and of all after it: the training went back (``train/spike.py``).

    Attributes:
        step: from 1.
        figures: by name, those of ``metrics.jsonl`` and, where the step was just made, its ``seconds``; None where a figure
            is not a finite number, which JSON cannot say.
    """

    kind: Literal["metric"] = "metric"
    step: int
    figures: dict[str, float | None]

    @classmethod
    def of(cls, record: Mapping[str, float]) -> Self:
        """The event of a step's record, whose key ``step`` counts from 1."""
        figures = {name: value if math.isfinite(value) else None for name, value in record.items() if name != "step"}
        return cls(step=int(record["step"]), figures=figures)


@dataclass(frozen=True, kw_only=True)
class WarningLine(EventRecord):
    """A warning that was logged.

    Attributes:
        logger: where, as the name of a module.
        message: as it was logged.
    """

    kind: Literal["warning"] = "warning"
    logger: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ArmScore(EventRecord):
    """An arm is scored.

    Attributes:
        arm: its name.
        rows: that were scored.
        score: their mean by the task's metric, None where nothing was scored.
    """

    kind: Literal["arm"] = "arm"
    arm: str
    rows: int
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Decision(EventRecord):
    """The gate has decided.

    Attributes:
        verdict: its words.
        exit_code: what the command line ends with.
        reason: in a sentence.
    """

    kind: Literal["verdict"] = "verdict"
    verdict: str
    exit_code: int
    reason: str


Event = ProcessStart | StageStart | StageEnd | Progress | Metric | WarningLine | ArmScore | Decision


def parse_event(line: bytes | str, where: str) -> Event:
    """The event of a line.

    Args:
        where: file and line, for an error.

    Raises:
        RunError: the line is no event, or one of another version.
    """
    try:
        event = _adapter().validate_json(line)
    except ValidationError as error:
        raise RunError(
            f"{where}: {error.errors()[0]['msg'].lower()}, expected an event",
            "the file is damaged or of another version of tunesmith; move it away, and the next verb begins a new one",
        ) from error
    if isinstance(event, ProcessStart) and event.version != VERSION:
        raise RunError(
            f"{where}: events of version {event.version}, expected {VERSION}",
            "another version of tunesmith wrote it; move it away, and the next verb begins a new one",
        )
    return event


def event_schema() -> JsonSchemaValue:
    """JSON schema of a line of ``events.jsonl``."""
    return _adapter().json_schema()


@functools.cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])
