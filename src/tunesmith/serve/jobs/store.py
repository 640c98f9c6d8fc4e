"""Files, jobs, events and webhooks in one SQLite file, which server and worker open at the same time.

Write-ahead logging lets readers read while one writes; ``synchronous=FULL`` keeps what was answered across a power cut; every
change is one transaction that takes the write lock first (``BEGIN IMMEDIATE``), so what is decided is decided on what is there.
A connection lasts one operation: threads and processes share none.

Refused: a queue library (huey loses a job whose worker is killed; rq, arq, dramatiq and procrastinate need a server; none
resumes a job, or cancels one that runs); SQLAlchemy, for five tables. Cost: about a millisecond a change, most
of it the disk's.
"""

import json
import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from tunesmith.errors import RunError
from tunesmith.rundir.records.base import Json
from tunesmith.serve.jobs.identity import Identity

VERSION = 1
Status = Literal["validating_files", "queued", "running", "paused", "publishing", "succeeded", "failed", "cancelled"]
FINISHED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
Level = Literal["info", "warn", "error"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, place TEXT NOT NULL,
  bytes INTEGER NOT NULL, created_at REAL NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL, sha256 TEXT NOT NULL,
  expires_at REAL
);
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner, number);
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, created_at REAL NOT NULL,
  status TEXT NOT NULL, model TEXT NOT NULL, training_file TEXT NOT NULL, validation_file TEXT, suffix TEXT,
  seed INTEGER NOT NULL, metadata TEXT, hyperparameters TEXT NOT NULL, options TEXT NOT NULL,
  fine_tuned_model TEXT, model_deleted INTEGER NOT NULL DEFAULT 0, verdict TEXT, started_at REAL, finished_at REAL,
  trained_tokens INTEGER, result_files TEXT NOT NULL DEFAULT '[]', error TEXT,
  attempts INTEGER NOT NULL DEFAULT 0, wish TEXT NOT NULL DEFAULT '', events_offset INTEGER NOT NULL DEFAULT 0,
  pid INTEGER, start INTEGER, boot TEXT, lease_until REAL,
  body_hash TEXT NOT NULL, idempotency_key TEXT, UNIQUE (owner, idempotency_key)
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
CREATE TABLE IF NOT EXISTS events (
  job TEXT NOT NULL REFERENCES jobs (id), seq INTEGER NOT NULL, created_at REAL NOT NULL, level TEXT NOT NULL,
  message TEXT NOT NULL, type TEXT NOT NULL, data TEXT, PRIMARY KEY (job, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (
  job TEXT NOT NULL REFERENCES jobs (id), step INTEGER NOT NULL, created_at REAL NOT NULL, metrics TEXT NOT NULL,
  PRIMARY KEY (job, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS webhooks (
  id TEXT NOT NULL PRIMARY KEY, job TEXT NOT NULL REFERENCES jobs (id), url TEXT NOT NULL, secret_env TEXT NOT NULL,
  body TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL, state TEXT NOT NULL DEFAULT 'waiting'
);
"""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that was uploaded, or a result.

    Attributes:
        number: in the order of their coming.
        place: its name in ``files/``.
        filename: what it was called where it comes from; shown, never opened.
        expires_at: seconds since 1970; None for never.
    """

    number: int
    id: str
    owner: str
    place: str
    bytes: int
    created_at: float
    filename: str
    purpose: str
    sha256: str
    expires_at: float | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fine-tuning job.

    Attributes:
        number: in the order of their coming.
        status: as we keep it: ``paused`` is told as queued, ``publishing`` (done, its model not yet served) as running.
        model: the base, by its name in the settings.
        hyperparameters: as they were asked for.
        options: of ours, as they were asked for.
        verdict: the gate's word; None before.
        attempts: crashes since it last got further.
        wish: ``cancel`` or ``pause``, which the worker will carry out; empty for none.
        events_offset: bytes of the run's ``events.jsonl`` that were told.
        pid, start, boot: the worker that has it; None for none.
        lease_until: when that worker is taken for stuck.
        body_hash: of the request.
    """

    number: int
    id: str
    owner: str
    created_at: float
    status: Status
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    metadata: dict[str, str] | None
    hyperparameters: Json
    options: Json
    fine_tuned_model: str | None
    model_deleted: int
    verdict: str | None
    started_at: float | None
    finished_at: float | None
    trained_tokens: int | None
    result_files: list[str]
    error: Json | None
    attempts: int
    wish: Literal["", "cancel", "pause"]
    events_offset: int
    pid: int | None
    start: int | None
    boot: str | None
    lease_until: float | None
    body_hash: str
    idempotency_key: str | None

    @property
    def worker(self) -> Identity | None:
        """The process that has it."""
        return (
            None if self.pid is None or self.start is None or self.boot is None else Identity(self.pid, self.start, self.boot)
        )

    @property
    def short(self) -> str:
        """What tells it from others, in other ids."""
        return self.id.removeprefix("ftjob-")


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job; ``seq`` counts from 1."""

    job: str
    seq: int
    created_at: float
    level: Level
    message: str
    type: Literal["message", "metrics"]
    data: JsonValue


@dataclass(frozen=True, kw_only=True)
class Said:
    """An event before it has its place."""

    message: str
    level: Level = "info"
    data: JsonValue = None

    @property
    def type(self) -> str:
        """Figures, or words alone."""
        return "message" if self.data is None else "metrics"


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A checkpoint: a step after which the dev loss was taken."""

    job: str
    step: int
    created_at: float
    metrics: dict[str, float]


JOB_JSON = ("metadata", "hyperparameters", "options", "result_files", "error")


def job_of(row: sqlite3.Row) -> Job:
    """A job from its row."""
    fields = dict(row)
    return Job(**{**fields, **{name: None if fields[name] is None else json.loads(fields[name]) for name in JOB_JSON}})


class Store:
    """The SQLite file of a directory of jobs."""

    def __init__(self, path: Path):
        self.path = path

    def create(self) -> None:
        """Make the tables where they are not there.

        Raises:
            RunError: the file is of another version, or no database.
        """
        try:
            with self.writing() as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version not in (0, VERSION):
                    raise RunError(f"{self.path}: jobs of version {version}, expected {VERSION}", "name another directory")
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{self.path}: cannot be opened as a database: {error}", "move it away, or name another directory"
            ) from error
        self.path.chmod(0o600)

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection to read with."""
        db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            yield db
        finally:
            db.close()

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection, None, None]:
        """A transaction that holds the write lock from its start; it is kept when the block ends well, or not at all."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            with db:  # commits, or rolls back on an error
                yield db

    def file(self, owner: str, file_id: str) -> StoredFile | None:
        """A file of an owner that has not expired."""
        with self.reading() as db:
            row = db.execute("SELECT * FROM files WHERE id = ? AND owner = ?", (file_id, owner)).fetchone()
        found = None if row is None else StoredFile(**dict(row))
        return None if found is None or (found.expires_at or time.time() + 1) < time.time() else found

    def files(self, owner: str, purpose: str | None, after: int | None, limit: int, newest_first: bool) -> list[StoredFile]:
        """Files of an owner in their order, behind one of them."""
        order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = _where({"owner": owner, "purpose": purpose}, "number", beyond, after)
        where, values = f"{where} AND COALESCE(expires_at, 9e99) > ?", [*values, time.time()]
        with self.reading() as db:
            rows = db.execute(f"SELECT * FROM files {where} ORDER BY number {order} LIMIT ?", (*values, limit)).fetchall()
        return [StoredFile(**dict(row)) for row in rows]

    def add_file(self, file: StoredFile) -> StoredFile:
        """Put a file on record; returns it with its number."""
        with self.writing() as db:
            insert(db, "files", [item for item in file.__dict__.items() if item[0] != "number"])
            return StoredFile(**dict(db.execute("SELECT * FROM files WHERE id = ?", (file.id,)).fetchone()))

    def same_file(self, owner: str, sha256: str, filename: str, since: float) -> StoredFile | None:
        """A file that an owner has uploaded lately under this name and with this content."""
        with self.reading() as db:
            row = db.execute(
                "SELECT * FROM files WHERE owner = ? AND sha256 = ? AND filename = ? AND created_at > ? ORDER BY number DESC",
                (owner, sha256, filename, since),
            ).fetchone()
        return None if row is None else StoredFile(**dict(row))

    def places(self) -> set[str]:
        """Where all files lie, by their names in ``files/``."""
        with self.reading() as db:
            return {place for (place,) in db.execute("SELECT place FROM files")}

    def stored_bytes(self, owner: str) -> int:
        """Bytes of all files of an owner."""
        with self.reading() as db:
            (total,) = db.execute("SELECT COALESCE(SUM(bytes), 0) FROM files WHERE owner = ?", (owner,)).fetchone()
        return total

    def take_file(self, owner: str, file_id: str) -> StoredFile | None:
        """Take a file off the record."""
        with self.writing() as db:
            row = db.execute("DELETE FROM files WHERE id = ? AND owner = ? RETURNING *", (file_id, owner)).fetchone()
        return None if row is None else StoredFile(**dict(row))

    def take_expired(self) -> list[StoredFile]:
        """Take the files off the record that have expired."""
        with self.writing() as db:
            rows = db.execute("DELETE FROM files WHERE expires_at < ? RETURNING *", (time.time(),)).fetchall()
        return [StoredFile(**dict(row)) for row in rows]

    def job(self, owner: str | None, job_id: str) -> Job | None:
        """A job; of an owner where one is named."""
        where, values = _where({"id": job_id, "owner": owner}, "number", "<", None)
        with self.reading() as db:
            row = db.execute(f"SELECT * FROM jobs {where}", values).fetchone()
        return None if row is None else job_of(row)

    def jobs(self, owner: str, metadata: dict[str, str], after: int | None, limit: int) -> list[Job]:
        """Jobs of an owner, the newest first, that have these pairs among their metadata."""
        where, values = _where({"owner": owner}, "number", "<", after)
        for key, value in metadata.items():
            where += " AND EXISTS (SELECT 1 FROM json_each(jobs.metadata) WHERE json_each.key = ? AND json_each.value = ?)"
            values += [key, value]
        with self.reading() as db:
            rows = db.execute(f"SELECT * FROM jobs {where} ORDER BY number DESC LIMIT ?", (*values, limit)).fetchall()
        return [job_of(row) for row in rows]

    def jobs_with(self, *statuses: Status) -> list[Job]:
        """All jobs of some statuses, the oldest first."""
        marks = ", ".join("?" for _ in statuses)
        with self.reading() as db:
            rows = db.execute(f"SELECT * FROM jobs WHERE status IN ({marks}) ORDER BY number", statuses).fetchall()
        return [job_of(row) for row in rows]

    def model(self, owner: str | None, name: str) -> Job | None:
        """The job that a tuned model comes from."""
        where, values = _where({"fine_tuned_model": name, "model_deleted": 0, "owner": owner}, "number", "<", None)
        with self.reading() as db:
            row = db.execute(f"SELECT * FROM jobs {where}", values).fetchone()
        return None if row is None else job_of(row)

    def events(self, job_id: str, before: int | None, limit: int) -> list[JobEvent]:
        """Events of a job, the newest first, older than one of them."""
        where, values = _where({"job": job_id}, "seq", "<", before)
        with self.reading() as db:
            rows = db.execute(f"SELECT * FROM events {where} ORDER BY seq DESC LIMIT ?", (*values, limit)).fetchall()
        return [JobEvent(**{**dict(row), "data": None if row["data"] is None else json.loads(row["data"])}) for row in rows]

    def told_steps(self, job_id: str) -> dict[int, float]:
        """The steps of its training that a job has told, each with its train loss as it was told last."""
        step, loss = "json_extract(data, '$.step')", "json_extract(data, '$.train_loss')"
        with self.reading() as db:
            rows = db.execute(f"SELECT {step}, {loss} FROM events WHERE job = ? AND {loss} IS NOT NULL ORDER BY seq", (job_id,))
            return dict(rows.fetchall())

    def checkpoints(self, job_id: str, before: int | None, limit: int) -> list[Reached]:
        """Checkpoints of a job, the newest first, older than one of them."""
        where, values = _where({"job": job_id}, "step", "<", before)
        with self.reading() as db:
            rows = db.execute(f"SELECT * FROM checkpoints {where} ORDER BY step DESC LIMIT ?", (*values, limit)).fetchall()
        return [Reached(**{**dict(row), "metrics": json.loads(row["metrics"])}) for row in rows]


def say(db: sqlite3.Connection, job_id: str, *events: Said) -> None:
    """Put events behind those of a job."""
    (last,) = db.execute("SELECT COALESCE(MAX(seq), 0) FROM events WHERE job = ?", (job_id,)).fetchone()
    for seq, event in enumerate(events, start=last + 1):
        data = None if event.data is None else json.dumps(event.data)
        values = (job_id, seq, time.time(), event.level, event.message, event.type, data)
        db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def _where(
    equal: dict[str, str | int | None], order: str, beyond: str, after: int | None
) -> tuple[str, list[str | int | float]]:
    """A WHERE of columns that are named here and values that come from anywhere."""
    parts = [(f"{name} = ?", value) for name, value in equal.items() if value is not None]
    if after is not None:
        parts.append((f"{order} {beyond} ?", after))
    return "WHERE " + " AND ".join(part for part, _ in parts), [value for _, value in parts]


def insert(db: sqlite3.Connection, table: Literal["files", "jobs", "webhooks"], values: Sequence[tuple[str, object]]) -> None:
    """Insert a row; columns that are not named take their defaults."""
    names, marks = ", ".join(name for name, _ in values), ", ".join("?" for _ in values)
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [value for _, value in values])
