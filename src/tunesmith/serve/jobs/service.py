"""The jobs as a server has them: their directory, their worker, and the models that come of them.

The server keeps one worker alive, whether it started it or found it, ends one that hangs, serves the models of jobs that have
ended, and removes files that have expired. A job whose model is to be served is ``publishing`` until the engine has it: who
reads ``succeeded`` may ask the model at once, also when the server was killed between the two.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from tunesmith.errors import RunError, TunesmithError, first_line
from tunesmith.rundir import lock
from tunesmith.serve.asking import EngineGone, Models
from tunesmith.serve.background import at_work
from tunesmith.serve.jobs.endings import published
from tunesmith.serve.jobs.identity import Identity
from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.programs import PYTHON
from tunesmith.serve.jobs.queue import Queue
from tunesmith.serve.jobs.settings import SETTINGS, load_settings
from tunesmith.serve.jobs.store import Job
from tunesmith.serve.storage import look_again

logger = logging.getLogger(__name__)

LOOK = 0.5  # seconds
RESTARTS = (0.0, 1.0, 5.0, 30.0)  # seconds before a worker that ends at once is started again
STOPPING = 20.0  # seconds that a worker has to give its jobs back
LOCAL = "local"


class Service:
    """The jobs of a directory.

    Args:
        directory: of the jobs; made where it is not there.
        bases: base models by name, for the settings of a new directory.
        owner_of: whose a request is; each owner sees its own files and jobs. The name of the key, in letters, digits, dots,
            dashes and underscores.
        worker: command line of the worker; tests name another.

    Raises:
        RecipeError: the settings are wrong, or name no base model.
        RunError: the database is of another version.
    """

    def __init__(
        self,
        directory: Path,
        bases: Mapping[str, str] | None = None,
        owner_of: Callable[[Request], str] = lambda request: LOCAL,
        worker: list[str] | None = None,
    ):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.settings, is_new = load_settings(directory, bases)
        self.place = Place(directory)
        self.place.store.create()
        self.queue = Queue(self.place.store, self.settings)
        self.shelf = self.place.shelf(self.settings)
        self.owner_of = owner_of
        self.models: Models | None = None
        self._command = worker or [PYTHON, "-m", "tunesmith.serve.jobs.worker", str(self.place.directory)]
        self._child: subprocess.Popen[bytes] | None = None
        self._started, self._restarts, self._purged = 0.0, 0, float("-inf")
        self._has_begun = False  # to serve the models of earlier jobs
        if is_new:
            logger.info(f"jobs: {directory / SETTINGS} is new; it says what may be tuned")

    @asynccontextmanager
    async def running(self, models: Models | None = None) -> AsyncIterator[None]:
        """Supervise within the block; at its end the worker gives its jobs back, and they go on at the next start.

        Args:
            models: that serve what the jobs make; None where only jobs are served.

        Raises:
            RunError: another server has the directory.
        """
        self.models = models
        with self._alone():
            await run_in_threadpool(lambda: self.shelf.create(self.place.store.places()))
            looks = (self._supervise, "jobs wait"), (self._publish, "models wait")
            try:
                async with at_work("the supervision of jobs", *(look_again(look, LOOK, who) for look, who in looks)):
                    yield
            finally:
                await run_in_threadpool(self._stop)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.writing(self.place.server_lock))
            except RunError as error:
                other = lock.writer_of(self.place.server_lock) or "process"
                raise RunError(
                    f"{self.place.directory}: is served by another {other}",
                    "end that server, or name another directory with --jobs",
                ) from error
            yield

    async def _supervise(self) -> None:
        await run_in_threadpool(self._tend_worker)
        if time.monotonic() - self._purged > 60.0:
            self._purged = time.monotonic()
            await run_in_threadpool(self._purge)

    def _tend_worker(self) -> None:
        """Start a worker where there is none, and end one that hangs."""
        for identity in self.queue.stuck():
            logger.warning(f"jobs: the worker {identity.pid} has not renewed its lease, and is killed")
            _kill(identity, signal.SIGKILL)
        if self._child is not None and self._child.poll() is None:
            return
        if lock.writer_of(self.place.worker_lock) is not None:  # one that outlived an earlier server
            return
        lived = time.monotonic() - self._started
        self._restarts = 0 if lived > 2 * RESTARTS[-1] else self._restarts
        if lived < RESTARTS[min(self._restarts, len(RESTARTS) - 1)]:
            return
        self._started, self._restarts = time.monotonic(), self._restarts + 1
        if self._restarts == len(RESTARTS):
            logger.warning(f"jobs: the worker ends again and again: {self.place.logs / 'worker.log'} says why")
        self.place.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.place.logs / "worker.log").open("ab") as log:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _stop(self) -> None:
        """Have the worker give its jobs back, and end it where it does not."""
        worker = self._worker()
        if worker is None:
            return
        _kill(worker, signal.SIGTERM)
        until = time.monotonic() + STOPPING
        while self._is_there(worker) and time.monotonic() < until:
            time.sleep(0.05)
        if self._is_there(worker):
            logger.warning(f"jobs: the worker {worker.pid} does not end, and is killed")
            _kill(worker, signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def _worker(self) -> Identity | None:
        """The worker that is there, started here or found."""
        if self._child is not None and self._child.poll() is None:
            return Identity.of(self._child.pid)
        try:
            worker = Identity(**json.loads(self.place.worker_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return worker if worker.is_alive() else None

    def _is_there(self, worker: Identity) -> bool:
        if self._child is not None:
            self._child.poll()
        return worker.is_alive()

    def _purge(self) -> None:
        """Remove files that have expired."""
        for file in self.place.store.take_expired():
            self.shelf.path(file).unlink(missing_ok=True)

    async def _publish(self) -> None:
        """Serve the models of the jobs: those that are there at the start, then each as it comes."""
        if not self._has_begun:
            for job in await run_in_threadpool(self.place.store.jobs_with, "succeeded"):
                if job.fine_tuned_model is not None and not job.model_deleted:
                    problem = await self._serve(job, job.fine_tuned_model)
                    if problem is not None:
                        logger.warning(f"jobs: {job.fine_tuned_model} is not served: {problem}")
            self._has_begun = True
        for job in await run_in_threadpool(self.place.store.jobs_with, "publishing"):
            assert job.fine_tuned_model is not None, job.id
            problem = await self._serve(job, job.fine_tuned_model)
            problem = None if problem is None else self.place.plain(problem, job)
            await run_in_threadpool(self.queue.end, job, None, published(job.fine_tuned_model, problem))

    async def _serve(self, job: Job, name: str) -> str | None:
        """Serve a model; what is in the way of that."""
        if self.models is None:
            return None
        try:
            await self.models.add(self.place.run(job.id).path, name, force=self.settings.serve_anyway)
        except TunesmithError as error:
            return error.message
        except (EngineGone, OSError) as error:
            return first_line(error)
        return None

    async def forget(self, job: Job) -> None:
        """Serve the model of a job no longer; its run stays where it is."""
        await run_in_threadpool(self.queue.forget_model, job)
        if self.models is not None and job.fine_tuned_model is not None:
            with contextlib.suppress(KeyError):
                await self.models.remove(job.fine_tuned_model)


def _kill(process: Identity, number: signal.Signals) -> None:
    """Send a signal to this very process, and to no other that has its number by now."""
    if process.is_alive():
        os.kill(process.pid, number)
