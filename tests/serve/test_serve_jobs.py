"""Fine-tuning by the official client, with a worker whose programs are stubs: create, wait, cancel, pause, results."""

import pytest

from jobs_server import Server, messages, upload, wait, write_settings


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(write_settings(tmp_path_factory.mktemp("jobs"))) as server:
        yield server


@pytest.fixture
def client(server):
    return server.client()


def test_a_job_is_made_and_ends_with_a_model(client):
    file = client.files.wait_for_processing(upload(client))
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="mine", seed=7, method=method, metadata={"team": "a"}
    )
    assert (job.status, job.seed, job.hyperparameters.n_epochs) == ("validating_files", 7, 2)
    done = wait(client, job.id)
    assert done.status == "succeeded" and done.fine_tuned_model == f"ft:tiny:local:mine:{job.id.removeprefix('ftjob-')}"
    assert done.trained_tokens == 30 and done.finished_at >= done.created_at and done.metadata == {"team": "a"}
    said = messages(client, job.id)
    assert said[0] == f"Created fine-tuning job: {job.id}" and said[-1] == "The job has successfully completed"
    assert f"New fine-tuned model created: {done.fine_tuned_model}" in said
    assert [line for line in said if line.startswith("Step ")] == [f"Step {n}: training loss={1 / n:.4f}, validation loss=1.0000" for n in (1, 2, 3)]
    texts = {client.files.retrieve(name).filename.rpartition("-")[2]: client.files.content(name).text for name in done.result_files}
    assert texts["report.html"] == "<p>the report</p>" and texts["step_metrics.csv"].startswith("step,train_loss")
    verdict = next(e for e in client.fine_tuning.jobs.list_events(job.id) if e.type == "metrics" and "verdict" in e.data)
    assert verdict.data["verdict"] == "deploy" and len(verdict.data["interval"]) == 2
