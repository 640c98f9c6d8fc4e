"""What is new in the table of steps goes to the tracker, once: however often it is called and whatever the training did.

The store is asked which steps it has, with their losses. A step that it has with another loss is of a part of the training
that was thrown away: a store that can take steps back does, any other keeps its first value, and that is said. W&B and remote
stores cannot be asked, so what was sent is written down in the run directory (``tracked/``, ``rundir/records/tracked.py``).

A training that is begun anew, from other keys or rows, has other figures from its first step on. It gets another id and so
another run in the store; in TensorBoard, where the directory is the run, it takes the place of the old one.
"""

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tunesmith.errors import RunError, first_line
from tunesmith.recipe.run import TrackerName
from tunesmith.rundir.atomic import fingerprint, sha256_file
from tunesmith.rundir.records.tracked import Sent
from tunesmith.tracking.trackers.facts import Facts
from tunesmith.tracking.trackers.mlflow import MLflow
from tunesmith.tracking.trackers.steps import LOSS, Point
from tunesmith.tracking.trackers.tensorboard import TensorBoard
from tunesmith.tracking.trackers.tracker import Tracker
from tunesmith.tracking.trackers.trackio import Trackio
from tunesmith.tracking.trackers.wandb import WandB

logger = logging.getLogger(__name__)

TRACKERS: dict[TrackerName, Callable[[Facts], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
CLOSE = 1e-6  # of a loss: TensorBoard keeps 32 bits


class Sender:
    """Sends one training to one tracker.

    Args:
        to: the tracker.
        facts: of the training.
        note: where what was sent is written down.
    """

    def __init__(self, to: TrackerName, facts: Facts, note: Path):
        self.to: TrackerName = to
        self.facts, self._note = facts, note
        known = Sent.read(note) if note.exists() else None
        self._sent = known if known is not None and known.id == facts.id else Sent(id=facts.id)
        self._tracker: Tracker | None = None
        self._held: dict[int, float] = {}
        self._asked = False
        self._is_told = False
        self.earlier = 0  # steps that were there
        self.steps = 0  # sent by this object

    def send(self, points: Sequence[Point]) -> None:
        """Send the points that the store does not have.

        Args:
            points: in order; all that the tracker may lack.

        Raises:
            RunError: the store failed.
            MissingPackage: its library is not installed.
        """
        if not points or (self._tracker is None and self._is_known(points)):
            return
        tracker = self._open()
        fresh = [point for point in points if not self._has(point)]
        if not fresh:
            return
        with self._named_errors():
            last = max(self._held, default=0)
            if fresh[0].step <= last and tracker.forgets:
                tracker.forget_from(fresh[0].step)
                self._held = {step: loss for step, loss in self._held.items() if step < fresh[0].step}
                fresh = [point for point in points if point.step >= fresh[0].step]
            elif fresh[0].step <= last:
                self._say_kept(fresh[0].step, last)
                fresh = [point for point in fresh if point.step > last]
            if not fresh:
                return
            tracker.log(fresh)
        self._held.update({point.step: _loss(point) for point in fresh})
        self.steps += len(fresh)
        self._sent = replace(self._sent, step=max(self._held))
        self._write()

    def summarise(self, facts: Facts, page: Path | None) -> None:
        """Send what is known of the whole run, where it is not what was sent last, and leave the store in order.

        Raises:
            RunError: the store failed.
            MissingPackage: its library is not installed.
        """
        self.facts = facts
        words = fingerprint(dict(facts.summary), dict(facts.tags), facts.outcome)
        digest = self._sent.page if page is None else sha256_file(page)
        if self._tracker is None and words == self._sent.summary and digest == self._sent.page:
            return
        tracker = self._open()
        with self._named_errors():
            tracker.summarise(facts, None if digest == self._sent.page else page)
            tracker.close(facts)
        self._sent = replace(self._sent, summary=words, page=digest)
        self._write()
        self._tracker = None

    def close(self) -> None:
        """Leave the store in order, with nothing said of the whole run."""
        if self._tracker is not None:
            with self._named_errors():
                self._tracker.close(self.facts)
            self._tracker = None

    @property
    def place(self) -> str:
        """Where the run is, for people; as it was when it was last opened."""
        return self._sent.place

    @property
    def look(self) -> str:
        """A command or an address that shows it."""
        return self._sent.look

    def _open(self) -> Tracker:
        if self._tracker is None:
            self._tracker = TRACKERS[self.to](self.facts)
            with self._named_errors():
                held = self._tracker.held()
            self._held = dict.fromkeys(range(1, self._sent.step + 1), math.nan) if held is None else dict(held)
            if not self._asked:
                self.earlier, self._asked = len(self._held), True
        return self._tracker

    def _is_known(self, points: Sequence[Point]) -> bool:
        """Whether the note says that there is nothing to send, so that W&B begins no run for it."""
        if self.to != "wandb" or points[-1].step > self._sent.step:
            return False
        self.earlier = self._sent.step
        return True

    def _has(self, point: Point) -> bool:
        held = self._held.get(point.step)
        return held is not None and (math.isnan(held) or math.isclose(held, _loss(point), rel_tol=CLOSE))

    def _say_kept(self, first: int, last: int) -> None:
        if not self._is_told:
            logger.warning(
                f"{self.to}: training went back and made steps {first} to {last} again; {self.to} takes nothing back, and "
                "keeps the first figures of them"
            )
        self._is_told = True

    def _write(self) -> None:
        assert self._tracker is not None
        self._sent = replace(self._sent, place=self._tracker.place, look=self._tracker.look)
        self._sent.write(self._note)

    @contextmanager
    def _named_errors(self) -> Generator[None]:
        """What a library raises, as an error of ours that says what to do."""
        errors = () if self._tracker is None else self._tracker.errors
        try:
            yield
        except errors as error:
            raise RunError(
                f"{self.to}: {first_line(error)}",
                f"the run itself is untouched; when it is mended: tunesmith track {self.facts.directory} --to {self.to}",
            ) from error


def _loss(point: Point) -> float:
    return point.values.get(LOSS, 0.0)
