"""What happens to a job: created, checked, queued, run, paused, ended; each change is one transaction.

    validating_files -> queued -> running -> publishing -> succeeded
           |              |  ^       |  \\-------------->  (no model to serve)
           |           paused -------|
           '-> failed, cancelled <---'

A claim names the worker by its number, its start and the boot, and lasts as long as the worker renews it. A job whose worker is
gone goes back to where it was claimed from: what was finished of its run is kept, so putting it back is resuming it. A worker
that was taken for gone changes nothing any more, because each of its changes asks whether the job is still its own.

Refused: 409 for a second job, or for one that is finished: the official client would try it again.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import Json
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.jobs.identity import Identity
from tunesmith.serve.jobs.settings import JobsSettings
from tunesmith.serve.jobs.store import FINISHED, Job, Said, Status, Store, StoredFile, insert, job_of, say

LEASE = 60.0  # seconds
RETRIED_WITHIN = 600.0  # seconds in which the same body, tried again by the client, is the same job
RETRY_AFTER = 60  # seconds, as an answer over quota says
OWN = "id = ? AND pid = ? AND start = ? AND boot = ?"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job that is wanted; the fields are those of ``Job``.

    Attributes:
        is_retry: the client says that it tries again.
    """

    id: str
    owner: str
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    metadata: dict[str, str] | None
    hyperparameters: Json
    options: Json
    body_hash: str
    idempotency_key: str | None
    is_retry: bool


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ends.

    Attributes:
        model: its name, where there is one.
        trained_tokens: all that it was trained on.
        hyperparameters: as they came out.
        files: results, in ``files/`` already.
        error: what the job says, where it failed.
        events: the last ones.
    """

    status: Status
    model: str | None = None
    verdict: str | None = None
    trained_tokens: int | None = None
    hyperparameters: Json | None = None
    files: tuple[StoredFile, ...] = ()
    error: Json | None = None
    events: tuple[Said, ...] = ()


class Queue:
    """The jobs of a store, under the settings of their directory."""

    def __init__(self, store: Store, settings: JobsSettings):
        self.store, self.settings = store, settings

    def create(self, new: NewJob) -> Job:
        """Put a job in; or give the one that the same request has made before.

        Raises:
            ApiError: 422, the key was used with another body; 429, too many jobs.
        """
        with self.store.writing() as db:
            earlier = self._earlier(db, new)
            if earlier is not None:
                return earlier
            marks = ", ".join("?" for _ in FINISHED)
            (open_jobs,) = db.execute(
                f"SELECT COUNT(*) FROM jobs WHERE owner = ? AND status NOT IN ({marks})", (new.owner, *FINISHED)
            ).fetchone()
            if open_jobs >= self.settings.quotas.jobs:
                raise over_quota(f"{open_jobs} jobs of this key are not finished, and it may have {self.settings.quotas.jobs}")
            values = [(name, value) for name, value in new.__dict__.items() if name != "is_retry"]
            values = [(name, json.dumps(value) if isinstance(value, dict) else value) for name, value in values]
            insert(db, "jobs", [*values, ("created_at", time.time()), ("status", "validating_files")])
            say(db, new.id, Said(message=f"Created fine-tuning job: {new.id}"))
            say(db, new.id, Said(message=f"Validating training file: {new.training_file}"))
            return self._job(db, new.id)

    def _earlier(self, db: sqlite3.Connection, new: NewJob) -> Job | None:
        """The job that the same request has made."""
        if new.idempotency_key is not None:
            row = db.execute(
                "SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ?", (new.owner, new.idempotency_key)
            ).fetchone()
            if row is not None and row["body_hash"] != new.body_hash:
                raise ApiError(422, "this Idempotency-Key came with another body before", "idempotency_key_reused")
            return None if row is None else job_of(row)
        if not new.is_retry:
            return None
        row = db.execute(
            "SELECT * FROM jobs WHERE owner = ? AND body_hash = ? AND created_at > ? ORDER BY number DESC LIMIT 1",
            (new.owner, new.body_hash, time.time() - RETRIED_WITHIN),
        ).fetchone()
        return None if row is None else job_of(row)

    def claim(self, kind: Literal["check", "run"], worker: Identity) -> Job | None:
        """The oldest job that is to be checked or run, for a worker; None where there is none."""
        before, after = ("validating_files",) * 2 if kind == "check" else ("queued", "running")
        with self.store.writing() as db:
            row = db.execute(
                "UPDATE jobs SET status = ?, pid = ?, start = ?, boot = ?, lease_until = ?, "
                "started_at = COALESCE(started_at, ?) "
                "WHERE number = (SELECT number FROM jobs WHERE status = ? AND pid IS NULL ORDER BY number LIMIT 1) RETURNING *",
                (after, worker.pid, worker.start, worker.boot, time.time() + LEASE, time.time(), before),
            ).fetchone()
        return None if row is None else job_of(row)

    def renew(self, worker: Identity) -> None:
        """Say that a worker is not stuck."""
        with self.store.writing() as db:
            db.execute(
                "UPDATE jobs SET lease_until = ? WHERE pid = ? AND start = ? AND boot = ?",
                (time.time() + LEASE, worker.pid, worker.start, worker.boot),
            )

    def tell(
        self,
        job: Job,
        worker: Identity,
        offset: int,
        events: Sequence[Said],
        reached: dict[int, dict[str, float]],
        further: bool,
    ) -> bool:
        """Write down what came of a run; whether the job is still the worker's.

        Args:
            offset: bytes of its events that are told with these.
            reached: checkpoints by step.
            further: whether it got further than before, so that earlier crashes no longer count.
        """
        with self.store.writing() as db:
            changed = db.execute(
                f"UPDATE jobs SET events_offset = ?, attempts = CASE WHEN ? THEN 0 ELSE attempts END WHERE {OWN}",
                (offset, further, *_own(job, worker)),
            ).rowcount
            if not changed:
                return False
            say(db, job.id, *events)
            for step, metrics in reached.items():
                values = (job.id, step, time.time(), json.dumps(metrics))
                db.execute(
                    "INSERT INTO checkpoints VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET metrics = excluded.metrics", values
                )
        return True

    def checked(self, job: Job, worker: Identity, events: Sequence[Said]) -> None:
        """The files of a job are good: it waits for its turn, or as it was wished meanwhile."""
        with self.store.writing() as db:
            if self._is_own(db, job, worker):
                say(db, job.id, *events)
                self._put_back(db, job.id, "queued", attempts=0)

    def put_back(self, job: Job, worker: Identity, *, crashed: str | None = None) -> None:
        """A job that was interrupted goes back to where it was claimed from, or ends as it was wished.

        Args:
            crashed: what its program ended with, where that is nobody's wish.
        """
        with self.store.writing() as db:
            if self._is_own(db, job, worker):
                self._interrupted(db, job.id, crashed)

    def put_back_orphans(self) -> list[str]:
        """Jobs whose worker is gone go back; their ids."""
        with self.store.writing() as db:
            rows = [job_of(row) for row in db.execute("SELECT * FROM jobs WHERE pid IS NOT NULL ORDER BY number")]
            orphans = [job.id for job in rows if job.worker is not None and not job.worker.is_alive()]
            for job_id in orphans:
                self._interrupted(db, job_id, "its worker was killed")
        return orphans

    def _interrupted(self, db: sqlite3.Connection, job_id: str, crashed: str | None) -> None:
        job = self._job(db, job_id)
        if job.status in FINISHED:
            return
        attempts = job.attempts + (crashed is not None)
        if job.wish == "" and attempts > self.settings.quotas.attempts:
            message = f"the job crashed {attempts} times without getting further: {crashed}"
            error: Json = {"code": "crashed", "message": message, "param": None}
            self._end(db, job_id, Ending(status="failed", error=error, events=(Said(message=message, level="error"),)))
            return
        if crashed is not None and job.wish == "":
            again = "it is checked again" if job.status == "validating_files" else "it goes on from its newest checkpoint"
            say(db, job_id, Said(message=f"The job was interrupted ({crashed}); {again}", level="warn"))
        self._put_back(db, job_id, "validating_files" if job.status == "validating_files" else "queued", attempts=attempts)

    def _put_back(self, db: sqlite3.Connection, job_id: str, status: Status, attempts: int) -> None:
        job = self._job(db, job_id)
        if job.wish == "cancel":
            self._end(db, job_id, Ending(status="cancelled", events=(Said(message="The job was cancelled"),)))
            return
        if job.wish == "pause" and status == "queued":
            status = "paused"
            say(db, job_id, Said(message="The job is paused; what is finished is kept"))
        db.execute(
            "UPDATE jobs SET status = ?, attempts = ?, pid = NULL, start = NULL, boot = NULL, lease_until = NULL, "
            "wish = CASE WHEN ? = 'paused' THEN '' ELSE wish END WHERE id = ?",
            (status, attempts, status, job_id),
        )

    def end(self, job: Job, worker: Identity | None, ending: Ending) -> bool:
        """End a job, once; whether it was this call that did.

        Args:
            worker: that has it; None for the server, which ends a job that is ``publishing``.
        """
        with self.store.writing() as db:
            if worker is not None and not self._is_own(db, job, worker):
                return False
            if worker is None and self._job(db, job.id).status != "publishing":
                return False
            self._end(db, job.id, ending)
        return True

    def _end(self, db: sqlite3.Connection, job_id: str, ending: Ending) -> None:
        for file in ending.files:
            insert(db, "files", [item for item in file.__dict__.items() if item[0] != "number"])
        say(db, job_id, *ending.events)
        if ending.files:
            names = json.dumps([file.id for file in ending.files])
            db.execute("UPDATE jobs SET result_files = ? WHERE id = ?", (names, job_id))
        error = None if ending.error is None else json.dumps(ending.error)
        hyperparameters = None if ending.hyperparameters is None else json.dumps(ending.hyperparameters)
        db.execute(
            "UPDATE jobs SET status = ?, fine_tuned_model = COALESCE(?, fine_tuned_model), verdict = COALESCE(?, verdict), "
            "trained_tokens = COALESCE(?, trained_tokens), hyperparameters = COALESCE(?, hyperparameters), error = ?, "
            "wish = '', finished_at = ?, pid = NULL, start = NULL, boot = NULL, lease_until = NULL WHERE id = ?",
            (
                *(ending.status, ending.model, ending.verdict, ending.trained_tokens, hyperparameters, error),
                *(time.time() if ending.status in FINISHED else None, job_id),
            ),
        )
        if ending.status in FINISHED:
            self._tell_receivers(db, job_id, ending.status)

    def _tell_receivers(self, db: sqlite3.Connection, job_id: str, status: Status) -> None:
        """Webhooks go with the change that they tell, so that none is lost and none tells what was not kept."""
        kind = f"fine_tuning.job.{status}"
        for receiver in self.settings.webhooks:
            if kind in receiver.types:
                name = f"evt_{uuid.uuid4().hex}"
                event: Json = {
                    "id": name,
                    "object": "event",
                    "created_at": int(time.time()),
                    "type": kind,
                    "data": {"id": job_id},
                }
                values = [("id", name), ("job", job_id), ("url", receiver.url), ("secret_env", receiver.secret_env)]
                insert(db, "webhooks", [*values, ("body", json.dumps(event)), ("next_at", time.time())])

    def cancel(self, job: Job) -> Job:
        """Cancel a job: at once where nobody works on it, else the worker is asked to stop.

        Raises:
            ApiError: it is finished.
        """
        with self.store.writing() as db:
            now = self._job(db, job.id)
            if now.status == "cancelled":
                return now
            _refuse_finished(now)
            if now.pid is None:
                self._end(db, job.id, Ending(status="cancelled", events=(Said(message="The job was cancelled"),)))
            elif now.wish != "cancel":
                db.execute("UPDATE jobs SET wish = 'cancel' WHERE id = ?", (job.id,))
                say(db, job.id, Said(message="The job is being cancelled"))
            return self._job(db, job.id)

    def pause(self, job: Job) -> Job:
        """Pause a job: it keeps what is finished and leaves its place to others.

        Raises:
            ApiError: it is finished, or being cancelled.
        """
        with self.store.writing() as db:
            now = self._job(db, job.id)
            _refuse_finished(now)
            if now.wish == "cancel":
                raise ApiError(400, f"{now.id} is being cancelled", "job_is_being_cancelled")
            if now.status == "queued":
                db.execute("UPDATE jobs SET status = 'paused' WHERE id = ?", (job.id,))
                say(db, job.id, Said(message="The job is paused; what is finished is kept"))
            elif now.status != "paused" and now.wish != "pause":
                db.execute("UPDATE jobs SET wish = 'pause' WHERE id = ?", (job.id,))
                say(db, job.id, Said(message="The job is being paused"))
            return self._job(db, job.id)

    def resume(self, job: Job) -> Job:
        """Let a paused job wait for its turn again; one that is not paused stays as it is.

        Raises:
            ApiError: it is finished.
        """
        with self.store.writing() as db:
            now = self._job(db, job.id)
            _refuse_finished(now)
            if now.status == "paused" or now.wish == "pause":
                status = "queued" if now.status == "paused" else now.status
                db.execute("UPDATE jobs SET status = ?, wish = '' WHERE id = ?", (status, job.id))
                say(db, job.id, Said(message="The job is resumed"))
            return self._job(db, job.id)

    def forget_model(self, job: Job) -> None:
        """The tuned model of a job has no name any more; its run stays."""
        with self.store.writing() as db:
            db.execute("UPDATE jobs SET model_deleted = 1 WHERE id = ?", (job.id,))
            say(db, job.id, Said(message=f"The model {job.fine_tuned_model} was deleted"))

    def say(self, job_id: str, events: Iterable[Said]) -> None:
        """Events that change nothing."""
        with self.store.writing() as db:
            say(db, job_id, *events)

    def stuck(self) -> set[Identity]:
        """Workers that live and have not renewed a lease in time."""
        with self.store.reading() as db:
            rows = db.execute("SELECT * FROM jobs WHERE pid IS NOT NULL AND lease_until < ?", (time.time(),)).fetchall()
        return {worker for row in rows if (worker := job_of(row).worker) is not None and worker.is_alive()}

    def _job(self, db: sqlite3.Connection, job_id: str) -> Job:
        return job_of(db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone())

    def _is_own(self, db: sqlite3.Connection, job: Job, worker: Identity) -> bool:
        return db.execute(f"SELECT 1 FROM jobs WHERE {OWN}", _own(job, worker)).fetchone() is not None


def over_quota(message: str) -> ApiError:
    """429 that the client shows at once: waiting two minutes changes nothing of it."""
    headers = {"Retry-After": str(RETRY_AFTER), "x-should-retry": "false"}
    return ApiError(429, message, "quota_exceeded", headers=headers)


def _own(job: Job, worker: Identity) -> tuple[str, int, int, str]:
    return job.id, worker.pid, worker.start, worker.boot


def _refuse_finished(job: Job) -> None:
    if job.status in (*FINISHED, "publishing"):
        status = job.status if job.status in FINISHED else "succeeded"
        raise ApiError(400, f"{job.id} is finished already: {status}", "job_already_finished")
