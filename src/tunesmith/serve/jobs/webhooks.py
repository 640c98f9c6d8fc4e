"""Webhooks: who is told how a job ended, in the form that ``client.webhooks.unwrap`` accepts.

An event is stored in the transaction that ends the job, and sent until its receiver says 2xx or a day of growing pauses is
over: a crash loses none, and may send one twice, under the same ``webhook-id``. The address comes from the settings alone, no
redirect is followed, and what the receiver answers is not read beyond its status, so no request can make this server ask
somebody else.
"""

import logging
import sqlite3
import threading
import time

import httpx2

from tunesmith import hardware
from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.signing import signature

logger = logging.getLogger(__name__)

PAUSES = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800)  # seconds after each try; after the last it is given up
TIMEOUT = 10.0
LOOK = 1.0


class Sender(threading.Thread):
    """Sends what is stored, beside the work."""

    def __init__(self, place: Place):
        super().__init__(daemon=True, name="webhooks")
        self._store = place.store

    def run(self) -> None:
        """Send until the process ends."""
        while True:
            try:
                self.send_due()
            except sqlite3.Error as error:  # locked for half a minute, or no room: what is stored is tried again
                logger.warning("webhooks wait: %s", error)
            time.sleep(LOOK)

    def send_due(self) -> None:
        """Try what is due now, each once."""
        with self._store.reading() as db:
            due = db.execute(
                "SELECT * FROM webhooks WHERE state = 'waiting' AND next_at <= ? ORDER BY next_at LIMIT 20", (time.time(),)
            ).fetchall()
        for event in due:
            problem = _send(event["id"], event["url"], event["secret_env"], event["body"])
            tries = event["attempts"] + 1
            state = "delivered" if problem is None else "waiting" if tries <= len(PAUSES) else "given up"
            pause = PAUSES[min(tries, len(PAUSES)) - 1]
            with self._store.writing() as db:
                db.execute(
                    "UPDATE webhooks SET attempts = ?, state = ?, next_at = ? WHERE id = ?",
                    (tries, state, time.time() + pause, event["id"]),
                )
            if problem is not None:
                logger.warning("webhook %s of %s: try %d: %s (%s)", event["id"], event["job"], tries, problem, state)


def _send(event_id: str, url: str, secret_env: str, body: str) -> str | None:
    """Post an event; what went wrong."""
    secret = hardware.secret(secret_env)
    if secret is None:
        return f"the environment variable {secret_env} is not set"
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "tunesmith",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, event_id, timestamp, body),
    }
    try:
        with httpx2.stream(
            "POST", url, content=body.encode(), headers=headers, timeout=TIMEOUT, follow_redirects=False
        ) as reply:
            return None if reply.is_success else f"status {reply.status_code}"
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{type(error).__name__}: {error}"
