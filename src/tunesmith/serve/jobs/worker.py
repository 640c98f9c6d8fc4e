"""The worker: one process that checks the files of one job and runs another one, whether a server is there or not.

It looks a few times a second: at what the programs have said, at what is wished of their jobs, at whether they have ended. The
programs do the work, in process groups of their own; they are killed with the worker, and what they were at goes on where its
files say when the next worker claims the job. A worker that outlives its server finishes what it has begun and ends; a new
server finds it by its lock and starts no second one.

Refused: threads (a program that hangs holds nothing of ours); running the stages in this process (a crash of theirs would be
ours, and what a GPU's driver has taken is given back by the end of a process alone).
"""

import json
import logging
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunesmith.errors import RunError
from tunesmith.hardware import Child
from tunesmith.rundir import lock
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.records.base import Json
from tunesmith.serve.jobs.endings import CODES_OF_VERDICTS, VerdictEnding, failed
from tunesmith.serve.jobs.following import Following
from tunesmith.serve.jobs.identity import Identity
from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.programs import GRACE, PROGRAMS, Programs, signal_group, start
from tunesmith.serve.jobs.queue import Queue
from tunesmith.serve.jobs.store import Job, Said
from tunesmith.serve.jobs.webhooks import Sender
from tunesmith.serve.storage import is_disk

logger = logging.getLogger(__name__)

LOOK = 0.2  # seconds between two looks
RENEW = 10.0  # seconds between two renewals of the lease
FULL = 5.0  # seconds between two looks where the disk is full
LONELY = 5.0  # seconds without a server and without work, after which it ends
Kind = Literal["check", "run"]


@dataclass
class Activity:
    """A job that is worked on.

    Attributes:
        child: its program; None while another process still writes the run.
        following: what the run says.
        offset: bytes of its events that are told.
        began: when it was claimed.
        stopping: why the program is being ended; empty where it is not.
        kill_at: when it is ended for good.
    """

    kind: Kind
    job: Job
    following: Following
    offset: int
    began: float = field(default_factory=time.monotonic)
    child: Child | None = None
    stopping: Literal["", "wish", "worker", "hours"] = ""
    kill_at: float = 0.0


class Worker:
    """Claims jobs of a directory and works on them."""

    def __init__(self, place: Place, programs: Programs):
        me = Identity.of()
        assert me is not None, "/proc is not there"
        self.place, self.programs, self.me = place, programs, me
        self.settings = place.settings()
        self.queue = Queue(place.store, self.settings)
        self.shelf = place.shelf(self.settings)
        self.active: dict[Kind, Activity] = {}
        self.ending = False  # gives back what it has
        self.is_alone = False  # no server: nothing new is begun
        self._renewed = 0.0

    def look(self) -> None:
        """Do what is to be done now; returns soon."""
        if self.active and time.monotonic() - self._renewed > RENEW:
            self.queue.renew(self.me)
            self._renewed = time.monotonic()
        kinds: tuple[Kind, Kind] = ("check", "run")
        for kind in kinds:
            activity = self.active.get(kind)
            if activity is None and not self.ending and not self.is_alone:
                self._claim(kind)
            elif activity is not None and not self._go_on(activity):
                del self.active[kind]

    def _claim(self, kind: Kind) -> None:
        job = self.queue.claim(kind, self.me)
        if job is None:
            return
        logger.info("%s %s", kind, job.id)
        steps = self.place.store.told_steps(job.id)
        self.active[kind] = Activity(kind, job, Following(self.place.run(job.id).events_file, steps), job.events_offset)

    def _go_on(self, activity: Activity) -> bool:
        """Look at a job; whether it is still worked on."""
        job = self.place.store.job(None, activity.job.id)
        if job is None or job.worker != self.me:
            if activity.child is not None:
                signal_group(activity.child, signal.SIGKILL)
            return False
        activity.job = job
        if activity.child is None:
            return self._start(activity)
        code = activity.child.poll()
        is_told = self._tell(activity)
        if code is None:
            self._stop_where_wished(activity)
        elif is_told:
            self._ended(activity, code)
            return False
        return True

    def _start(self, activity: Activity) -> bool:
        """Start the program, as soon as nobody writes the run; whether the job is still worked on."""
        job = activity.job
        if job.wish == "cancel" or (job.wish == "pause" and activity.kind == "run") or self.ending:
            self.queue.put_back(job, self.me)
            return False
        if lock.writer_of(self.place.run(job.id).path) is not None:  # what a killed worker left is about to end
            return True
        program = self.programs.check if activity.kind == "check" else self.programs.run
        command = program(self.place, job.id)
        answer = self._answer(job) if activity.kind == "check" else None
        activity.child = start(command, self.place.log(job.id), answer)
        return True

    def _answer(self, job: Job) -> Path:
        return self.place.logs / f"{job.id}.answer"

    def _tell(self, activity: Activity) -> bool:
        """Tell what is new of the run; whether that was all there is."""
        told = activity.following.new(activity.offset)
        if told.offset == activity.offset:
            return True
        events = [
            Said(message=self._plain(said.message, activity.job), level=said.level, data=said.data) for said in told.events
        ]
        self.queue.tell(activity.job, self.me, told.offset, events, told.reached, told.further)
        activity.offset = told.offset
        return False

    def _plain(self, text: str, job: Job) -> str:
        return self.place.plain(text, job)

    def _stop_where_wished(self, activity: Activity) -> None:
        """Ask a program to end, and end it where it does not."""
        job, child = activity.job, activity.child
        assert child is not None
        hours = self.settings.quotas.hours
        if not activity.stopping:
            if job.wish == "cancel" or (job.wish == "pause" and activity.kind == "run"):
                activity.stopping = "wish"
            elif self.ending:
                activity.stopping = "worker"
            elif hours is not None and activity.kind == "run" and time.monotonic() - activity.began > 3600.0 * hours:
                activity.stopping = "hours"
            else:
                return
            activity.kill_at = time.monotonic() + GRACE
            signal_group(child, signal.SIGTERM)
        elif time.monotonic() > activity.kill_at:
            signal_group(child, signal.SIGKILL)

    def _ended(self, activity: Activity, code: int) -> None:
        """A program has ended."""
        job = activity.job
        if activity.kind == "check" and code == 0:
            self._checked(job)
        elif activity.kind == "run" and code in CODES_OF_VERDICTS:
            ending = VerdictEnding(self.place, self.shelf, self.settings, job).ending()
            self.queue.end(job, self.me, ending)
        elif activity.stopping == "hours":
            limit = self.settings.quotas.hours
            self.queue.end(job, self.me, failed("time_limit_exceeded", f"the job ran for more than {limit:g} hours"))
        elif activity.stopping:
            self.queue.put_back(job, self.me)
        elif activity.kind == "run" and code in FAULTS:
            said = activity.following.error or last_error(self.place.log(job.id))
            name, param = FAULTS[code]
            self.queue.end(job, self.me, failed(name, self._plain(said, job), param))
        else:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.queue.put_back(job, self.me, crashed=f"its {activity.kind} ended with {how}")

    def _checked(self, job: Job) -> None:
        """What came of a check."""
        answer: Json = json.loads(self._answer(job).read_text(encoding="utf-8"))
        error, result = answer.get("error"), answer.get("ok")
        if isinstance(error, dict):
            param = str(error["param"]) if error["param"] else None
            message = self._plain(str(error["message"]), job)
            if param == "training_file" and job.validation_file is not None and job.validation_file in message:
                param = "validation_file"
            self.queue.end(job, self.me, failed(str(error["code"]), message, param))
        elif isinstance(result, dict):
            said = result.get("said")
            events = [Said(message=str(line)) for line in said] if isinstance(said, list) else []
            self.queue.checked(job, self.me, events)
        self._answer(job).unlink()


FAULTS: dict[int, tuple[str, str | None]] = {  # exit codes of errors.py
    3: ("failed", None),
    4: ("invalid_recipe", None),
    5: ("invalid_training_file", "training_file"),
    6: ("model_error", "model"),
    7: ("run_error", None),
    8: ("training_error", None),
    9: ("export_error", None),
    20: ("missing_package", None),
}


def last_error(log: Path) -> str:
    """The error that a program's log ends with."""
    text = log.read_bytes()[-8192:].decode("utf-8", "replace")
    return text.rpartition("error: ")[2].strip() or "it says nothing of the reason"


def work(place: Place, programs: Programs) -> int:
    """Work on the jobs of a directory until there is no server and nothing to do; the exit code."""
    try:
        with lock.writing(place.worker_lock):
            _work(place, programs)
    except RunError as error:
        logger.info("another worker is there: %s", error.message)
    return 0


def _work(place: Place, programs: Programs) -> None:
    worker = Worker(place, programs)
    write_json(place.worker_file, worker.me.__dict__)

    def end(number: int, frame: object) -> None:
        worker.ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    for job_id in worker.queue.put_back_orphans():
        logger.info("%s goes back: its worker is gone", job_id)
    sender = Sender(place)
    sender.start()
    alone_since: float | None = None
    while not worker.ending or worker.active:
        worker.is_alone = lock.writer_of(place.server_lock) is None
        try:
            worker.look()
        except (sqlite3.OperationalError, OSError) as error:
            if not is_disk(error):
                raise
            logger.warning("jobs wait: %s", error)  # their programs go on, and are looked at when there is room again
            time.sleep(FULL)
        alone_since = None if worker.active or not worker.is_alone else alone_since or time.monotonic()
        if alone_since is not None and time.monotonic() - alone_since > LONELY:
            logger.info("no server and no job: ending")
            return
        time.sleep(LOOK)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    sys.exit(work(Place(Path(sys.argv[1])), PROGRAMS))
