"""A disk that is full for a while: who looks goes on looking, and who asks is told to come again."""

import asyncio
import errno
import sqlite3

import httpx2
from jobs_server import Server, write_settings

from tunesmith.serve.storage import look_again


def test_a_look_that_the_disk_spoils_is_one_of_many(talk):
    looks, full = [], [sqlite3.OperationalError("disk I/O error"), OSError(errno.ENOSPC, "No space left on device")]

    async def look():
        looks.append(1)
        if len(looks) < 6:
            raise full[len(looks) // 4]
        raise asyncio.CancelledError

    asyncio.run(_until_cancelled(look_again(look, 0.0, "jobs wait")))
    text = talk()
    assert len(looks) == 6 and [text.count(words) for words in ("jobs wait: disk I/O error", "No space left")] == [1, 1]


async def _until_cancelled(looking):
    await asyncio.gather(asyncio.create_task(looking), return_exceptions=True)


def test_a_full_disk_is_no_fault_of_the_request(tmp_path, monkeypatch):
    with Server(write_settings(tmp_path / "jobs")) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        for error in (sqlite3.OperationalError("database or disk is full"), OSError(errno.ENOSPC, "No space left")):

            def full(*_, error=error):
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(server.service.place.store, "jobs", full)
                reply = httpx2.get(f"{url}/fine_tuning/jobs")
                assert (reply.status_code, reply.json()["error"]["code"]) == (
                    503,
                    "disk_full",
                ) and "Retry-After" in reply.headers
        assert httpx2.get(f"{url}/fine_tuning/jobs").json()["data"] == []
