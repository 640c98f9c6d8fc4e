"""The queue without processes: who may claim and change what, and what becomes of a job whose worker is gone."""

import os
import time

import pytest

from tunesmith.errors import RunError
from tunesmith.evaluate.gate import EXIT_CODES, PASSING
from tunesmith.serve.jobs import queue as queues
from tunesmith.serve.jobs.endings import CODES_OF_VERDICTS, GIVEN
from tunesmith.serve.jobs.identity import Identity
from tunesmith.serve.jobs.queue import Ending, NewJob, Queue
from tunesmith.serve.jobs.settings import JobsSettings
from tunesmith.serve.jobs.store import Said, Store

ALIVE = Identity.of()
GONE = Identity(ALIVE.pid, ALIVE.start - 1, ALIVE.boot)  # had our number before us
OTHER_BOOT = Identity(ALIVE.pid, ALIVE.start, "another boot")


@pytest.fixture
def queue(tmp_path):
    store = Store(tmp_path / "jobs.sqlite3")
    store.create()
    return Queue(store, JobsSettings(models={"tiny": "owner/tiny"}))


def add(queue, name="ftjob-1"):
    fields = {"validation_file": None, "suffix": None, "seed": 0, "metadata": None, "hyperparameters": {}, "options": {}}
    rest = {"body_hash": "", "idempotency_key": None, "is_retry": False}
    return queue.create(NewJob(id=name, owner="local", model="tiny", training_file="file-a", **fields, **rest))


def status(queue, name="ftjob-1"):
    return queue.store.job(None, name).status


def test_jobs_are_claimed_in_their_order_and_once(queue):
    for name in ("ftjob-1", "ftjob-2"):
        add(queue, name)
        queue.checked(queue.claim("check", ALIVE), ALIVE, [])
    assert [queue.claim("run", ALIVE).id, queue.claim("run", ALIVE).id, queue.claim("run", ALIVE)] == [
        "ftjob-1",
        "ftjob-2",
        None,
    ]


def running(queue, worker):
    add(queue)
    queue.checked(queue.claim("check", worker), worker, [])
    return queue.claim("run", worker)


def test_who_lost_a_job_changes_nothing_of_it(queue):
    job = running(queue, GONE)
    assert queue.put_back_orphans() == [job.id] and status(queue) == "queued"
    queue.claim("run", ALIVE)
    assert not queue.tell(job, GONE, 5, [Said(message="late")], {}, False)
    assert not queue.end(job, GONE, Ending(status="succeeded"))
    queue.put_back(job, GONE)
    queue.checked(job, GONE, [Said(message="late")])
    assert status(queue) == "running" and queue.store.job(None, job.id).events_offset == 0
    assert all(event.message != "late" for event in queue.store.events(job.id, None, 99))
    assert queue.end(job, ALIVE, Ending(status="failed", error={"code": "a", "message": "b", "param": None}))
    assert not queue.end(job, ALIVE, Ending(status="succeeded")) and status(queue) == "failed"


@pytest.mark.parametrize("worker", [GONE, OTHER_BOOT])
@pytest.mark.parametrize(("wish", "expected"), [("", "queued"), ("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_whose_worker_is_gone(queue, worker, wish, expected):
    job = running(queue, worker)
    if wish:
        getattr(queue, wish)(job)
    assert status(queue) == "running"
    queue.put_back_orphans()
    assert status(queue) == expected


def test_the_job_of_a_worker_that_lives_stays_with_it(queue):
    running(queue, ALIVE)
    assert queue.put_back_orphans() == [] and status(queue) == "running"


def test_crashes_count_until_the_job_gets_further(queue):
    job = running(queue, ALIVE)
    for further in (False, False, True, False, False):
        queue.tell(job, ALIVE, 1, [], {}, further)
        queue.put_back(job, ALIVE, crashed="signal 9")
        assert status(queue) == "queued"
        queue.claim("run", ALIVE)
    queue.put_back(job, ALIVE, crashed="signal 9")
    ended = queue.store.job(None, job.id)
    assert ended.status == "failed" and ended.error["code"] == "crashed"
    assert queue.claim("run", ALIVE) is None


def test_a_worker_that_renews_no_lease_is_stuck(queue, monkeypatch):
    running(queue, ALIVE)
    assert queue.stuck() == set()
    monkeypatch.setattr(queues.time, "time", lambda now=time.time: now() + queues.LEASE + 1)
    assert queue.stuck() == {ALIVE}
    queue.renew(ALIVE)
    assert queue.stuck() == set()


def test_a_process_is_more_than_its_number():
    assert ALIVE.pid == os.getpid() and ALIVE.is_alive() and not GONE.is_alive() and not OTHER_BOOT.is_alive()
    child = os.fork()
    if not child:
        os._exit(0)
    while Identity.of(child) is not None:  # a zombie is no process that runs
        time.sleep(0.01)
    os.waitpid(child, 0)


def test_a_file_that_is_no_store_of_ours(tmp_path):
    store = Store(tmp_path / "jobs.sqlite3")
    store.create()
    with store.reading() as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(RunError, match="jobs of version 9, expected 1"):
        store.create()
    (tmp_path / "text").write_text("no database at all, but a text that is long enough to be one" * 20)
    with pytest.raises(RunError, match="cannot be opened as a database"):
        Store(tmp_path / "text").create()


def test_what_the_worker_knows_of_verdicts_is_what_the_gate_says():
    assert set(GIVEN) == set(PASSING) and set(EXIT_CODES.values()) == CODES_OF_VERDICTS
