"""A run in processes that were launched together (``torchrun``, Ray Train, a hand): the first makes it, the others follow.

    torchrun --standalone --nproc-per-node gpu -m tunesmith run recipe.yaml

The first process goes through the stages as if it were alone: it reads, writes, prints and decides. A stage that gains by more
processes gives the others a job, and says when it is done: training (``train/together.py``), the answers of models that are
loaded here (``engines/dealt.py``). Whoever follows opens the same run directory, or the model that it is told, and computes.
What it says goes to ``logs/rank-N.log`` of the run; errors go to its stderr as well.

**How it ends.** Where the run ends, all end, with status 0; a verdict's exit code would be a failure to a launcher, which would
begin anew. Where one process fails, all fail with its reason (``launch/group.py``), and whatever was finished is kept: the next
start goes on, with any number of processes.
"""

import gc
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.engines.dealt import ANSWER, Follower
from tunesmith.errors import RunError
from tunesmith.launch.group import Group, group, leave
from tunesmith.pipeline.train import TRAIN, follow_training
from tunesmith.rundir import RunDir
from tunesmith.tracking.sinks import LOGGER

logger = logging.getLogger(__name__)

END = "end"
Json = dict[str, Any]


def run_together(lead: Callable[[], object]) -> object:
    """Run this process of several: the first does what it is told, the others follow it to the end. One that is alone leads.

    Args:
        lead: what the first one does; where it ends by ``SystemExit``, the number says whether it failed.

    Returns:
        What ``lead`` did; None in the others.

    Raises:
        RunError: not all came, or one failed.
    """
    connection = group()
    if connection is None:
        return lead()
    with _Together(connection):
        if connection.leads:
            return lead()
        for handler in logging.getLogger(LOGGER).handlers:
            handler.setLevel(logging.WARNING)
        follow(connection)


def follow(connection: Group) -> None:
    """Do the jobs that the first process gives, until it ends.

    Raises:
        TunesmithError: the first process is gone, or a job cannot be done here.
    """
    answers = Follower(connection)
    while (job := connection.receive())["kind"] != END:
        if job["kind"] == TRAIN:
            answers.close()
            run = RunDir.open(Path(job["run"]))
            with _log_of(run.path, connection.rank):
                follow_training(run, job, connection)
            gc.collect()  # the model, which the training's parts hold in a circle, before another one is loaded
        elif job["kind"] == ANSWER:
            answers.answer(job)
        else:
            raise RunError(f"rank {connection.rank}: a job that is not known here: {job['kind']}", "install one version on all")
    answers.close()


class _Together:
    """Ends this process's part: with a word to the others, whether it went well or not."""

    def __init__(self, connection: Group):
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if (reason := _reason(error)) is not None:
                self._connection.fail(reason)
            elif self._connection.leads:
                self._end()
        finally:
            leave()

    def _end(self) -> None:
        try:
            self._connection.send({"kind": END})
        except RunError as lost:
            self._connection.fail(str(lost))
            raise


def _reason(error: BaseException | None) -> str | None:
    """Why a process ends that does not end well."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return None
    if isinstance(error, SystemExit):
        return f"its command ended with exit code {error.code}"
    return str(error) or type(error).__name__


@contextmanager
def _log_of(run: Path, rank: int) -> Generator[None]:
    """Write what this process says below the run directory."""
    folder = run / "logs"
    folder.mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger(LOGGER)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
