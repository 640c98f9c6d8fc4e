"""A server of jobs for tests: the real uvicorn in a thread, or in a process that can be killed, and the official client."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import uvicorn
import yaml
from jobs_program import application

from tunesmith.serve.jobs.identity import Identity
from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.service import Service

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAM = str(HERE / "jobs_program.py")
STUBS = str(HERE / "jobs_worker.py")
VERDICT = sorted((ROOT / "benchmarks" / "results" / "verdicts").iterdir())[0] / "verdict.json"


def write_settings(directory: Path, **keys) -> Path:
    """A directory of jobs with its settings."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "jobs.yaml").write_text(yaml.safe_dump({"models": {"tiny": "owner/tiny"}, **keys}))
    return directory


class Server:
    """The jobs of a directory, served from a thread."""

    def __init__(self, directory: Path, *, models=None, port=0, **service):
        self.service = Service(directory, **{"worker": [sys.executable, STUBS, str(directory)], **service})
        config = uvicorn.Config(application(self.service, models), port=port, log_level="error", timeout_graceful_shutdown=2)
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._socket])))
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="sk-x", max_retries=0, **options)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def upload(client, **orders) -> str:
    """A file whose first line says what the stub shall do; its id."""
    text = json.dumps({"verdict": str(VERDICT), **orders}) + "\n"
    return client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune").id


def wait(client, job_id, *statuses, seconds=120.0):
    """A job when it has one of some statuses."""
    until = time.monotonic() + seconds
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in (statuses or ("succeeded", "failed", "cancelled")):
        assert time.monotonic() < until, f"{job_id} is still {job.status}"
        time.sleep(0.05)
    return job


def messages(client, job_id) -> list[str]:
    """What a job has said, the oldest first."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


class Killable:
    """A server in a process of its own, which may be killed and is then started again.

    Args:
        worker: file of the worker that it starts.
    """

    def __init__(self, directory: Path, worker: str):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.place = Place(directory)
        self._command = [sys.executable, PROGRAM, str(directory), str(self.port), worker]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(HERE)])}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, env=self._environment)
        while self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="sk-x", max_retries=5)

    def worker(self) -> Identity | None:
        try:
            found = Identity(**json.loads(self.place.worker_file.read_text()))
        except OSError:
            return None
        return found if found.is_alive() else None

    def kill_worker(self) -> None:
        worker = self.worker()
        if worker is not None:
            os.kill(worker.pid, signal.SIGKILL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
