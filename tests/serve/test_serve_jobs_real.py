"""A real job on the tiny model, from the upload to a model that is served: processes of their own, as users have them. Slow."""

import json
import sys
from pathlib import Path

import pytest
from jobs_server import Server, messages, wait, write_settings

from shared import toy_rows
from tunesmith.rundir.records.evaluation import Verdict

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


class Fake:
    """Models that are served, without an engine."""

    def __init__(self):
        self.names = {}

    async def add(self, run, name=None, *, force=False):
        self.names[name] = run, force

    async def remove(self, name):
        del self.names[name]


@pytest.fixture(scope="module")
def models():
    return Fake()


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_dir, models):
    directory = write_settings(
        tmp_path_factory.mktemp("real") / "jobs", models={"tiny": str(tiny_dir)}, recipe=RECIPE, serve_anyway=True
    )
    with Server(directory, models=models, worker=[sys.executable, WORKER, str(directory)]) as server:
        yield server


@pytest.fixture(scope="module")
def file(server):
    text = "".join(json.dumps(row) + "\n" for row in toy_rows())
    return server.client().files.create(file=("colours.jsonl", text.encode()), purpose="fine-tune").id


def test_a_real_job_ends_with_a_verdict_and_a_model(server, models, file):
    client = server.client()
    method = {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 8, "learning_rate_multiplier": 2.0}}}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file, method=method)
    done = wait(client, job.id, seconds=400)
    assert done.status == "succeeded", messages(client, job.id)
    run = server.service.place.run(job.id)
    verdict = Verdict.read(run.verdict_file)
    said = "\n".join(messages(client, job.id))
    assert f"Verdict: {verdict.decision}" in said and "sealed rows, drawn from the training file" in said
    assert done.hyperparameters.batch_size == 8 and done.hyperparameters.n_epochs == 4
    assert models.names == {done.fine_tuned_model: (run.path, True)}
    assert done.trained_tokens > 0 and client.fine_tuning.jobs.checkpoints.list(job.id).data
    client.models.delete(done.fine_tuned_model)
    assert models.names == {} and client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
