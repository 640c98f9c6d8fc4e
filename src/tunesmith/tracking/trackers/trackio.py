"""trackio: a run of a project in its SQLite file, at a Space or at a server, as its own variables say.

A local file is asked which steps it has (``SQLiteStorage``, which the package's own Api reads by); a remote one cannot be,
and what was sent is written down in the run directory (``sender.py``). trackio knows runs by their names, so ours end in the
training's id. It prints what it does to standard output, which is for data here; that is left out. It has no summary: the
figures of the whole run are logged at its last step, once, and texts stand in the configuration.
"""

import contextlib
import io
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import hardware
from tunesmith.tracking.trackers.facts import Facts
from tunesmith.tracking.trackers.steps import LOSS, STEP, Point
from tunesmith.tracking.trackers.tracker import ErrorTypes, library

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio:
    """One run of a project."""

    forgets = False
    errors: ErrorTypes = (sqlite3.Error, ValueError, ConnectionError)

    def __init__(self, facts: Facts):
        self._module = library("trackio", "trackio")
        remote = [value for value in map(hardware.variable, REMOTE) if value]
        self._facts = facts
        self._logs = () if remote else self._read()
        self._is_remote = bool(remote)
        with contextlib.redirect_stdout(io.StringIO()):
            self._run: Any = self._module.init(
                project=facts.project,
                name=facts.label,
                config={**facts.config, **facts.tags},
                resume="allow",
                auto_log_gpu=False,
                auto_log_cpu=False,
                embed=False,
            )
        self.place = remote[0] if remote else str(self._module.TRACKIO_DIR)
        self.look = remote[0] if remote else f"trackio show --project {facts.project}"

    def held(self) -> Mapping[int, float] | None:
        """The loss of every step in a local file."""
        if self._is_remote:
            return None
        return {int(line["step"]): line[LOSS] for line in self._logs if LOSS in line}

    def log(self, points: Sequence[Point]) -> None:
        """Append steps."""
        for point in points:
            self._run.log({name: value for name, value in point.values.items() if name != STEP}, step=point.step)

    def forget_from(self, step: int) -> None:
        """Not to be called: trackio keeps what it was told."""
        raise AssertionError(step)

    def summarise(self, facts: Facts, page: Path | None) -> None:
        """Log figures and texts of the whole run at its last step, where they are not there; the page as a file."""
        known: dict[str, Any] = {}
        for line in self._logs:
            known |= line
        news = {name: value for name, value in facts.summary.items() if known.get(name) != value}
        if news:
            self._run.log(news, step=facts.last_step)
        if page is not None:
            self._module.save(str(page), project=facts.project)

    def close(self, facts: Facts) -> None:
        """Wait until everything is in the file."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._module.finish()

    def _read(self) -> Sequence[dict[str, Any]]:
        storage = self._module.SQLiteStorage
        if not storage.get_project_db_path(self._facts.project).exists():
            return ()
        return storage.get_logs(self._facts.project, self._facts.label)
