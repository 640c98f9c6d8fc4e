"""A server of jobs for tests: the real uvicorn in a thread, or in a process that can be killed, and the official client."""

import asyncio
import json
import socket
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import uvicorn
import yaml
from starlette.applications import Starlette

from shared import ROOT
from tunesmith.serve.api_error import HANDLERS
from tunesmith.serve.jobs.routes import routes
from tunesmith.serve.jobs.service import Service

VERDICT = sorted((ROOT / "benchmarks" / "results" / "verdicts").iterdir())[0] / "verdict.json"


def stub_worker(directory):
    return [sys.executable, str(Path(__file__).with_name("jobs_worker.py")), str(directory)]


def write_settings(directory: Path, **keys) -> Path:
    """A directory of jobs with its settings."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "jobs.yaml").write_text(yaml.safe_dump({"models": {"tiny": "owner/tiny"}, **keys}))
    return directory


def application(service: Service, models=None) -> Starlette:
    @asynccontextmanager
    async def lifespan(_):
        async with service.running(models):
            yield

    return Starlette(routes=routes(service), exception_handlers=HANDLERS, lifespan=lifespan)


class Server:
    """The jobs of a directory, served from a thread."""

    def __init__(self, directory: Path, *, models=None, port=0, **service):
        self.service = Service(directory, **{"worker": stub_worker(directory), **service})
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


if __name__ == "__main__":  # a server that can be killed: python jobs_server.py DIR PORT
    served = Service(Path(sys.argv[1]), worker=stub_worker(sys.argv[1]) if "--stub" in sys.argv else None)
    uvicorn.run(application(served), port=int(sys.argv[2]), log_level="error")
