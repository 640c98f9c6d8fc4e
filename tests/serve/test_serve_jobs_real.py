"""A real job on the tiny model, from the upload to an answer of the model that came of it: every process of its own. Slow."""

import asyncio
import json
import socket
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
import uvicorn
from jobs_server import messages, wait, write_settings

from shared import toy_rows
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.serve.application import front
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.generations import Generations
from tunesmith.serve.jobs.routes import routes
from tunesmith.serve.jobs.service import Service

pytestmark = pytest.mark.slow

RECIPE = {
    "base": "fp32",
    "task": {"metric": "json", "prompt": "Colour and thing, as JSON.", "max_new_tokens": 12},
    "data": {"test_fraction": 0.25, "dev_fraction": 0.2},
    "lora": {"r": 4, "alpha": 8},
    "train": {"max_length": 128, "replay": 0.0},
    "evaluate": {"arms": ["zero_shot", "tuned"], "batch_size": 8, "price_per_hour": 2.0},
    "export": {"gguf": ["F16"]},
}
WORKER = str(Path(__file__).with_name("jobs_real_worker.py"))


class Whole:
    """Jobs and the models that come of them behind one address, in a thread."""

    def __init__(self, directory: Path):
        self.service = Service(directory, worker=[sys.executable, WORKER, str(directory)])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        while self.server is None or not self.server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.05)

    async def _serve(self):
        self.models = await Generations.open([], Catalogue().find, 2)
        async with self.service.running(self.models):
            app = front(self.models, more=routes(self.service)).app
            self.server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
            await self.server.serve([self._socket])
        await self.models.close()

    def client(self):
        address = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        return openai.OpenAI(base_url=address, api_key="sk-x", max_retries=0)

    def close(self):
        self.server.should_exit = True
        self._thread.join()


def test_a_job_is_made_waited_for_and_its_model_asked(tmp_path, tiny_dir):
    directory = write_settings(tmp_path / "jobs", models={"tiny": str(tiny_dir)}, recipe=RECIPE, serve_anyway=True)
    rows = "".join(json.dumps(row) + "\n" for row in toy_rows())
    whole = Whole(directory)
    try:
        with whole.client() as client:
            file = client.files.create(file=("colours.jsonl", rows.encode()), purpose="fine-tune")
            hyper = {"batch_size": 8, "learning_rate_multiplier": 2.0}
            method = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
            job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=method)
            done = wait(client, job.id, seconds=400)
            said = "\n".join(messages(client, job.id))
            assert done.status == "succeeded", said
            model = done.fine_tuned_model
            answer = client.chat.completions.create(model=model, messages=toy_rows()[0]["messages"][:1], max_tokens=8)
            assert answer.model == model and answer.choices[0].message.content
            assert model in [entry.id for entry in client.models.list()]
            run = whole.service.place.run(job.id)
            verdict = Verdict.read(run.verdict_file)
            assert f"Verdict: {verdict.decision}" in said and "sealed rows, drawn from the training file" in said
            assert done.hyperparameters.batch_size == 8 and done.hyperparameters.n_epochs == 4 and done.trained_tokens > 0
            assert client.fine_tuning.jobs.checkpoints.list(job.id).data
            client.models.delete(model)
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model=model, messages=toy_rows()[0]["messages"][:1])
    finally:
        whole.close()
