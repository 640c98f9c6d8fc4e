"""The verb track: send a run's steps, arms and verdict to a tracker, once or for as long as the run is written.

Everything is read from the run directory; the training knows nothing of it. ``follow`` ends when nobody writes the run any
more: the kernel gives the lock back however its holder ends, so no follower outlives its run.
"""

import logging
import time
from pathlib import Path

from tunesmith import __version__, hardware
from tunesmith.errors import RunError
from tunesmith.pipeline import stage as stages
from tunesmith.pipeline.table import table_of
from tunesmith.recipe import dump_recipe
from tunesmith.recipe.run import TrackerName
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.events import EventReader
from tunesmith.rundir.lock import writer_of
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.events import Event, Metric, ProcessStart, StageEnd
from tunesmith.rundir.records.tracked import Tracked
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import read_metrics
from tunesmith.tracking.trackers.facts import Facts, Outcome, Value, flattened
from tunesmith.tracking.trackers.sender import Sender
from tunesmith.tracking.trackers.steps import STAGE, Point, Steps

logger = logging.getLogger(__name__)

PROJECT = "tunesmith"
PROJECTS = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "trackio": "TRACKIO_PROJECT"}
SECONDS = 2.0  # between two looks
OUTCOMES: dict[str, Outcome] = {"done": "finished", "failed": "failed", "interrupted": "stopped"}


def track(
    run: RunDir, to: TrackerName, *, project: str | None = None, report: bool = False, follow: bool = False
) -> Tracked | None:
    """Send a run to a tracker; what is there already is not sent again. None where a run was followed that trained no step.

    Args:
        project: where the tracker files it; None for what its own variable says, else ``tunesmith``.
        report: send ``report.html`` as well, which shows rows of the data.
        follow: go on until nobody writes the run, or Ctrl-C.

    Raises:
        RunError: no step was trained yet and nothing is waited for, there is no page to send, or the store failed.
        MissingPackage: the tracker's library is not installed.
    """
    page = _page(run, to) if report else None
    follower = _Follower(run, to, project)
    follower.look()
    if follow:
        _follow(run, follower)
    sent = follower.finish(page)
    if sent is None and run.recipe().tuned:
        raise RunError(
            f"{run.path}: its tuned model was brought, so there are no steps to send",
            f"its verdict is in {run.path}/report.html and in: tunesmith verdict {run.path} --markdown",
        )
    if sent is None and not follow:
        raise RunError(f"{run.path}: no step was trained yet", f"run: tunesmith run {run.target}")
    return sent


def _page(run: RunDir, to: TrackerName) -> Path:
    if to == "tensorboard":
        raise RunError("tensorboard keeps no files, so there is no place for report.html", "leave --report away")
    if not run.report_file.is_file():
        raise RunError(f"{run.report_file}: not there", f"run: tunesmith report {run.path}")
    return run.report_file


def _follow(run: RunDir, follower: "_Follower") -> None:
    """Look until the run is over; a first Ctrl-C ends it as well."""
    if writer_of(run.path) is None:
        logger.info(f"{run.path}: nobody writes it, so there is nothing to wait for")
        return
    try:
        is_over = False
        while not is_over:
            time.sleep(SECONDS)
            is_over = writer_of(run.path) is None
            follower.look()
    except KeyboardInterrupt:
        logger.info("no longer following; what is there is sent, and the same command goes on from it")


class _Follower:
    """Reads a run's events and sends what is new in them."""

    def __init__(self, run: RunDir, to: TrackerName, project: str | None):
        self._to: TrackerName = to
        self._run = run
        self._project = project or hardware.variable(PROJECTS.get(to, "")) or PROJECT
        self._reader, self._steps = EventReader(run.events_file), Steps()
        self._birth = str(run.path.resolve())
        self._is_begun = False
        self._outcome: Outcome = "running"
        self._sender: Sender | None = None
        self._ends: tuple[Point, Point] | None = None  # of the training that the sender is for

    def look(self) -> None:
        """Send what came since the last look."""
        events = self._reader.new()
        self._take(events)
        news = self._steps.news()
        if not news:
            return
        sender = self._sender_of(self._steps.points)
        sender.send(news if self._sender is sender else self._steps.points)
        self._sender = sender

    def finish(self, page: Path | None) -> Tracked | None:
        """Send what is known of the whole run; None where no step was trained yet."""
        self.look()
        if self._sender is None:
            self._steps.take(_steps_of_table(self._run))
            if not self._steps.points:
                return None
            self._sender = self._sender_of(self._steps.points)
            self._sender.send(self._steps.points)
        assert self._ends is not None
        verdict = _verdict(self._run)
        facts = self._facts(*self._ends, verdict)
        self._sender.summarise(facts, page)
        return Tracked(
            run=str(self._run.path),
            to=self._to,
            id=facts.id,
            place=self._sender.place,
            look=self._sender.look,
            steps=self._sender.steps,
            earlier=self._sender.earlier,
            verdict=None if verdict is None else verdict.decision,
        )

    def _take(self, events: list[Event]) -> None:
        if events and not self._is_begun:
            self._is_begun = True
            if isinstance(first := events[0], ProcessStart):
                self._birth = f"{first.at} {first.process}"
        for event in events:
            if isinstance(event, StageEnd) and "/" not in event.stage:
                self._outcome = OUTCOMES[event.outcome]
        self._steps.take(events)

    def _sender_of(self, points: list[Point]) -> Sender:
        """The sender of the training that is there; another training ends the one before."""
        self._ends = (points[0], points[-1])
        facts = self._facts(*self._ends, None)
        if self._sender is not None:
            if self._sender.facts.id == facts.id:
                return self._sender
            self._sender.close()
        return Sender(self._to, facts, self._run.tracked / f"{self._to}.json")

    def _facts(self, first: Point, last: Point, verdict: Verdict | None) -> Facts:
        run, recipe = self._run, self._run.recipe()
        return Facts(
            directory=run.path,
            name=run.path.resolve().name,
            id=fingerprint(self._birth, first.first)[:16],
            project=self._project,
            recipe=dump_recipe(recipe),
            config=flattened(recipe.model_dump(mode="json")),
            tags=_tags(run),
            summary=_summary(run, verdict),
            last_step=last.step,
            outcome=self._outcome,
        )


def _steps_of_table(run: RunDir) -> list[Event]:
    """The steps of a run whose events are gone, from its table."""
    return [
        Metric(stage=STAGE, step=event.step, figures=event.figures) for event in map(Metric.of, read_metrics(run.metrics_file))
    ]


def _tags(run: RunDir) -> dict[str, str]:
    """Where the run comes from: hashes of recipe, rows and model, commit, versions."""
    manifest = run.manifest()
    tags = {
        "tunesmith": __version__,
        "run": str(run.path.resolve()),
        "recipe_sha256": fingerprint(run.recipe_file.read_text(encoding="utf-8")),
        "data_sha256": fingerprint(manifest.data.get("sha256")),
        **{f"packages.{name}": version for name, version in manifest.packages.items() if name in ("torch", "transformers")},
    }
    if manifest.git is not None:
        tags["git_commit"] = manifest.git.commit + (" (dirty)" if manifest.git.dirty else "")
    return tags


def _verdict(run: RunDir) -> Verdict | None:
    """The verdict on what is there now; None without one, or where something was made anew since."""
    if not run.verdict_file.exists():
        return None
    recipe = run.recipe()
    if stages.status(run, table_of(recipe), recipe)["verdict"].state != "done":
        logger.warning(f"{run.path}: the verdict is not of what is there now, and is left out; tunesmith status {run.path}")
        return None
    return Verdict.read(run.verdict_file)


def _summary(run: RunDir, verdict: Verdict | None) -> dict[str, Value]:
    """Figures and words of the whole run."""
    summary: dict[str, Value] = {}
    if run.training_file.exists():
        training = Training.read(run.training_file)
        summary |= {
            "eval/first_loss": training.first_dev_loss,
            "eval/best_loss": training.best_dev_loss,
            "train/best_step": training.best_step,
        }
    if verdict is None:  # said aloud, in the place of one that was sent before
        return {**summary, "verdict": "outdated" if run.verdict_file.exists() else "none yet"}
    for arm in verdict.arms:
        summary |= {f"arm/{arm.name}/score": arm.score, f"arm/{arm.name}/low": arm.low, f"arm/{arm.name}/high": arm.high}
        if arm.against is not None:
            summary[f"arm/{arm.name}/gain"] = arm.against.gain
    gain = verdict.comparison
    return {
        **summary,
        "verdict": verdict.decision,
        "verdict/reason": verdict.reason,
        "verdict/exit_code": verdict.exit_code,
        "verdict/gain": gain.gain,
        "verdict/gain_low": gain.low,
        "verdict/gain_high": gain.high,
    }
