"""Weights & Biases: a run with an id of ours, online where the environment has a key, else offline.

Steps are plotted against ``train/global_step``, as transformers' callback does, and logged without W&B's own step, which
drops what is not above the last one. An offline run cannot be asked what it holds, and a second one with the same id is a
second directory; so what was sent is written down in the run directory (``sender.py``), and where nothing is new nothing is
opened.

Without ``WANDB_API_KEY`` and ``WANDB_MODE`` the run is offline, in ``WANDB_DIR`` or the run directory, and ``wandb sync``
sends it later: a training that waits for somebody to log in is worse.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import hardware
from tunesmith.tracking.trackers.facts import Facts
from tunesmith.tracking.trackers.steps import STEP, Point
from tunesmith.tracking.trackers.tracker import ErrorTypes, library


class WandB:
    """One run of a project."""

    forgets = False

    def __init__(self, facts: Facts):
        module = library("wandb", "wandb")
        self._module = module
        self.errors: ErrorTypes = (module.errors.Error,)
        known = hardware.variable("WANDB_MODE") or hardware.variable("WANDB_API_KEY")
        settings = module.Settings(console="off", x_disable_stats=True, x_disable_meta=True, silent=True)
        self._run: Any = module.init(
            project=facts.project,
            name=facts.name,
            id=facts.id,
            config={**facts.config, **facts.tags},
            mode=None if known else "offline",
            dir=hardware.variable("WANDB_DIR") or str(facts.directory),
            resume="allow",
            settings=settings,
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)
        folder = Path(self._run.dir).parent
        url = None if self._run.offline else self._run.url
        self.place = url or str(folder)
        self.look = url or f"wandb sync {folder}"

    def held(self) -> None:
        """It cannot be asked: an offline run is a log that its own process writes."""
        return None

    def log(self, points: Sequence[Point]) -> None:
        """Append steps; the process of the library has them when this returns."""
        for point in points:
            self._run.log(dict(point.values))

    def forget_from(self, step: int) -> None:
        """Not to be called: W&B keeps what it was told."""
        raise AssertionError(step)

    def summarise(self, facts: Facts, page: Path | None) -> None:
        """Write the summary and the tags; the page as an artifact."""
        self._run.summary.update(dict(facts.summary))
        self._run.config.update(dict(facts.tags), allow_val_change=True)
        if page is not None:
            artifact = self._module.Artifact(f"{facts.name}-report", type="report")
            artifact.add_file(str(page))
            self._run.log_artifact(artifact)

    def close(self, facts: Facts) -> None:
        """Wait until the library has written or sent everything."""
        self._run.finish(exit_code=0 if facts.outcome in ("running", "finished") else 1)
