"""Run directories that are looked at again and again: a new export and verdict become the next version of a model.

What is looked at are the records that a stage writes last, by size and time. A change is acted on when it stood still for one
look, so that a run in the middle of its stages is left alone; whether files and verdict belong together the catalogue says,
as for any run. What cannot be served is said once, and tried again when something changes. The old version goes on answering.

Refused: inotify, which network file systems do not have.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from tunesmith.errors import TunesmithError, first_line
from tunesmith.serve.asking import EngineGone, Models
from tunesmith.serve.storage import look_again

logger = logging.getLogger(__name__)

SECONDS = 2.0  # between looks
RECORDS = ("recipe.yaml", "export/export.json", "export/parity.json", "evaluation/verdict.json")
State = tuple[tuple[int, int] | None, ...]


class Watch:
    """Runs that are watched.

    Args:
        models: what serves them.
        runs: those that are served already, by name.
        folder: each run in it is served too, from its verdict on, until its directory is gone; None: no others.
        force: whether to serve what may not be deployed.
    """

    def __init__(self, models: Models, runs: Mapping[str, Path], folder: Path | None = None, *, force: bool = False):
        self._models, self._folder, self._force = models, folder, force
        self._names: dict[Path, str] = {path.resolve(): name for name, path in runs.items()}
        self._own = frozenset(self._names)  # these stay when their directory goes
        self._acted: dict[Path, State] = {path: _state(path) for path in self._names}
        self._seen: dict[Path, State] = {}

    async def run(self) -> None:
        """Look until the task is cancelled."""
        await look_again(self.look, SECONDS, "serve: runs are not watched")

    async def look(self) -> None:
        """Look once, and act on what stood still since the last look."""
        present = await asyncio.to_thread(self._states)
        for path, state in present.items():
            if self._seen.get(path) == state != self._acted.get(path):
                self._acted[path] = state
                await self._add(path)
        self._seen = present
        for path in [path for path in self._names if path not in present and path not in self._own]:
            del self._acted[path]
            with contextlib.suppress(KeyError):  # a request has removed it before
                await self._models.remove(self._names.pop(path))

    async def _add(self, path: Path) -> None:
        try:
            served = await self._models.add(path, self._names.get(path), force=self._force)
        except (TunesmithError, EngineGone, OSError) as error:
            kept = f"; {self._names[path]} goes on as it was" if path in self._names else ""
            logger.warning(f"serve: {first_line(error)}{kept}")
            return
        self._names[path] = served.name

    def _states(self) -> dict[Path, State]:
        return {path: _state(path) for path in self._paths() if (path / RECORDS[-1]).is_file()}

    def _paths(self) -> Iterable[Path]:
        found = set(self._names)
        if self._folder is not None and self._folder.is_dir():
            found |= {path.resolve() for path in self._folder.iterdir() if (path / RECORDS[0]).is_file()}
        return sorted(found)


def _state(run: Path) -> State:
    """Size and time of each record; None where there is none."""
    return tuple([_times(run / name) for name in RECORDS])


def _times(file: Path) -> tuple[int, int] | None:
    try:
        facts = file.stat()
    except FileNotFoundError:
        return None
    return facts.st_size, facts.st_mtime_ns
