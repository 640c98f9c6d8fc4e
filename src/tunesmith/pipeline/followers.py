"""What ``report_to`` starts: a follower for each tracker (``tunesmith track RUN --follow``), a process of its own.

The training imports nothing of a tracker, waits for none, and goes on when one fails: that is a warning, with the command
that sends everything again. A follower ends when the run does (``pipeline/track.py``); it has a moment to finish then, and is
killed by the kernel with the process that started it, whatever ended that. Nothing is lost by it: the next one goes on from
where the store stands.

They are a sink of the run's events, so one is begun with the first stage that is made, and none where everything is up to
date.

Refused: a thread (a library that hangs or crashes would be in the training's process), the libraries' own background
processes (each another, and W&B's alone outlives its parent).
"""

import logging
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from tunesmith import hardware
from tunesmith.recipe.run import TrackerName
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.events import Event, StageStart

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for the last words after the run
TOLD = 3.0  # seconds after which that waiting is said
PACKAGES: dict[TrackerName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


@dataclass
class _Follower:
    """One that was started.

    Attributes:
        talk: its standard error.
        is_told: its failure was said.
    """

    to: TrackerName
    child: hardware.Child
    talk: IO[bytes]
    is_told: bool = False


class Followers:
    """The followers of one run; a context around the writing of it, and a sink within.

    Args:
        names: of the trackers.
    """

    def __init__(self, run: RunDir, names: Sequence[TrackerName]):
        self._run, self._names = run, tuple(dict.fromkeys(names))
        self._followers: list[_Follower] = []

    def write(self, event: Event) -> None:
        """Start them with the first stage; say it when one has failed."""
        if isinstance(event, StageStart) and not self._followers:
            self._followers = [self._start(name) for name in self._names]
        self._look()

    def __enter__(self) -> "Followers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        deadline, is_told = time.monotonic() + PATIENCE, False
        try:
            while any(follower.child.poll() is None for follower in self._followers) and time.monotonic() < deadline:
                if not is_told and time.monotonic() > deadline - PATIENCE + TOLD:
                    is_told = True
                    waiting = ", ".join(follower.to for follower in self._followers if follower.child.poll() is None)
                    logger.info(f"report_to: waiting for {waiting} to send the rest; Ctrl-C leaves it")
                time.sleep(0.05)
        except KeyboardInterrupt:
            logger.info("report_to: left; " + self._again(self._followers))
        finally:
            self._look()
            for follower in self._followers:
                if follower.child.poll() is None:
                    follower.child.kill()
                    follower.child.wait()
                follower.talk.close()
            self._followers = []

    def _start(self, to: TrackerName) -> _Follower:
        talk = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the follower
        command = [sys.executable, "-m", "tunesmith", "--quiet", "track", str(self._run.path), "--to", to, "--follow"]
        nothing = subprocess.DEVNULL
        child = hardware.Child(
            command, online=True, start_new_session=True, stdin=nothing, stdout=nothing, stderr=talk
        )  # a session of its own: Ctrl-C at the terminal is for the run
        logger.info(f"report_to: {to}")
        return _Follower(to, child, talk)

    def _look(self) -> None:
        """Say once of each follower that it failed, in its last words."""
        for follower in self._followers:
            code = follower.child.poll()
            if code is None or code == 0 or follower.is_told:
                continue
            follower.is_told = True
            follower.talk.seek(0)
            lines = follower.talk.read().decode("utf-8", "replace").strip().splitlines()
            last = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else f"exit code {code}")
            words = last.removeprefix("error: ").removeprefix(f"{follower.to}: ")
            logger.warning(f"report_to: {follower.to}: {words}; the run does without; {self._again([follower])}")

    def _again(self, followers: Sequence[_Follower]) -> str:
        commands = [shlex.join(["tunesmith", "track", str(self._run.path), "--to", follower.to]) for follower in followers]
        return f"to send it afterwards: {'; '.join(commands)}"
