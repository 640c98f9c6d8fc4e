"""The steps of a training as its events tell them, under the names of transformers.

The events since the last start of the stage ``train`` are the whole table, and a step that is said again takes the place of
the first one and of all after it (``rundir/records/events.py``). Runs inside a run (``seeds/train``) are other trainings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from tunesmith.rundir.records.events import Event, Metric, StageStart

STAGE = "train"
LOSS, EVAL_LOSS, STEP, TOKENS = "train/loss", "eval/loss", "train/global_step", "train/num_tokens"
NAMES = {"loss": LOSS, "dev_loss": EVAL_LOSS, "accuracy": "train/mean_token_accuracy"}


@dataclass(frozen=True)
class Point:
    """What a tracker is told of a step.

    Attributes:
        step: from 1.
        at: when it was made, seconds since the epoch.
        values: figures by the name that dashboards know.
        first: the figures as the table has them, to tell one training from another.
    """

    step: int
    at: float
    values: Mapping[str, float]
    first: tuple[tuple[str, float], ...] = ()


class Steps:
    """The table, brought forward by events."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._untold = 0  # how many points at the beginning are unchanged since ``news`` was asked

    def take(self, events: Iterable[Event]) -> None:
        """Bring the table forward."""
        for event in events:
            if isinstance(event, StageStart) and event.stage == STAGE:
                self._cut(0)
            elif isinstance(event, Metric) and event.stage == STAGE:
                self._add(event)

    def news(self) -> list[Point]:
        """The points that came or were said again since the last call."""
        news = self.points[self._untold :]
        self._untold = len(self.points)
        return news

    def _cut(self, length: int) -> None:
        del self.points[length:]
        self._untold = min(self._untold, length)

    def _add(self, event: Metric) -> None:
        kept = len(self.points)
        while kept and self.points[kept - 1].step >= event.step:
            kept -= 1
        self._cut(kept)
        before = self.points[-1].values.get(TOKENS, 0.0) if self.points else 0.0
        self.points.append(_point(event, before))


def _point(event: Metric, tokens_before: float) -> Point:
    """The names of a step's figures; one that is no finite number is left out."""
    figures = {name: value for name, value in event.figures.items() if value is not None}
    values = {NAMES.get(name, f"train/{name}"): value for name, value in figures.items() if name not in ("tokens", "seconds")}
    values[STEP] = float(event.step)
    tokens, seconds = figures.get("tokens", 0.0), figures.get("seconds", 0.0)
    values[TOKENS] = tokens_before + tokens
    if seconds:
        values["train/tokens_per_second"] = tokens / seconds
    first = tuple(sorted((name, value) for name, value in figures.items() if name != "seconds")) if event.step == 1 else ()
    return Point(event.step, datetime.fromisoformat(event.at).timestamp(), values, first)
