"""What a run says of itself, as events of its job.

The run's ``events.jsonl`` is read from the byte up to which it was told, and the next such byte is kept in the same transaction
as the job's events: a worker that is killed tells nothing twice and leaves nothing out. A training that resumes says the steps
of its checkpoint again, and computes some a second time; a step with the figures that were told is not told again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.rundir.records.events import ArmScore, Event, Metric, StageEnd, StageStart, WarningLine, parse_event
from tunesmith.serve.jobs.store import Said

MOST = 1 << 20  # bytes that are read at a time


@dataclass
class Told:
    """What is new of a run.

    Attributes:
        offset: bytes that are told with it.
        events: for the job.
        reached: dev losses by step, with the figures of that step.
        further: a stage was finished, or a dev loss taken.
    """

    offset: int
    events: list[Said] = field(default_factory=list[Said])
    reached: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    further: bool = False


class Following:
    """A run that is told.

    Args:
        path: its ``events.jsonl``.
        steps: that were told, with their train losses.

    Attributes:
        error: of the stage that failed last; None where one has begun or ended well since.
    """

    def __init__(self, path: Path, steps: dict[int, float]):
        self._path, self._steps = path, steps
        self.error: str | None = None

    def new(self, offset: int) -> Told:
        """What came behind an offset."""
        told = Told(offset)
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                whole, newline, _ = file.read(MOST).rpartition(b"\n")
        except FileNotFoundError:
            return told
        told.offset += len(whole) + len(newline)
        for line in whole.split(b"\n") if newline else []:
            try:
                event = parse_event(line, str(self._path))
            except RunError as error:
                told.events.append(Said(message=f"an event of the run cannot be read: {error.message}", level="warn"))
                continue
            told.events += self._of(event, told)
        return told

    def _of(self, event: Event, told: Told) -> Iterator[Said]:
        if isinstance(event, StageStart):
            self.error = None
            yield Said(message=f"Stage {event.stage} begins")
        elif isinstance(event, StageEnd) and event.outcome == "done":
            self.error, told.further = None, True
            yield Said(message=f"Stage {event.stage} is done")
        elif isinstance(event, StageEnd):
            self.error = event.error or event.outcome
        elif isinstance(event, WarningLine):
            yield Said(message=event.message, level="warn")
        elif isinstance(event, ArmScore):
            score = "nothing was scored" if event.score is None else f"{event.score:.4f}"
            data = {"arm": event.arm, "rows": event.rows, "score": event.score}
            yield Said(message=f"Arm {event.arm}: {score} on {event.rows} test rows", data={**data})
        elif isinstance(event, Metric) and event.stage == "train":
            yield from self._step(event, told)

    def _step(self, event: Metric, told: Told) -> Iterator[Said]:
        figures = {name: value for name, value in event.figures.items() if value is not None}
        metrics = {ours: figures[theirs] for theirs, ours in NAMES.items() if theirs in figures}
        metrics["step"] = event.step
        if "valid_loss" in metrics:
            told.reached[event.step] = metrics
        if self._steps.get(event.step) == metrics.get("train_loss"):
            return
        told.further |= "valid_loss" in metrics
        self._steps[event.step] = metrics.get("train_loss", 0.0)
        loss = f"training loss={metrics.get('train_loss', float('nan')):.4f}"
        dev = f", validation loss={metrics['valid_loss']:.4f}" if "valid_loss" in metrics else ""
        yield Said(message=f"Step {event.step}: {loss}{dev}", data={**metrics})


NAMES = {  # ours -> OpenAI's
    "loss": "train_loss",
    "accuracy": "train_mean_token_accuracy",
    "dev_loss": "valid_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens": "tokens",
}
