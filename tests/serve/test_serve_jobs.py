"""Fine-tuning by the official client, with a worker whose programs are stubs: create, wait, cancel, pause, results."""

import asyncio
import itertools
import json
import threading
import time

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_server import Server, messages, upload, wait, write_settings

from tunesmith.errors import RunError
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.jobs.files import Upload

SUPERVISED = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    quotas = {"jobs": 6, "file_bytes": "100kB", "stored_bytes": "1MB", "keep_free": "1kB"}
    with Server(write_settings(tmp_path_factory.mktemp("jobs"), quotas=quotas)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def create(client, **orders):
    return client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, **orders))


def test_a_job_is_made_and_ends_with_a_model(client):
    file = client.files.wait_for_processing(upload(client))
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="mine", seed=7, method=SUPERVISED, metadata={"team": "a"}
    )
    assert (job.status, job.seed, job.hyperparameters.n_epochs) == ("validating_files", 7, 2)
    done = wait(client, job.id)
    assert done.status == "succeeded" and done.fine_tuned_model == f"ft:tiny:local:mine:{job.id.removeprefix('ftjob-')}"
    assert done.trained_tokens == 30 and done.finished_at >= done.created_at and done.metadata == {"team": "a"}
    said = messages(client, job.id)
    assert said[0] == f"Created fine-tuning job: {job.id}" and said[-1] == "The job has successfully completed"
    assert f"New fine-tuned model created: {done.fine_tuned_model}" in said
    steps = [f"Step {n}: training loss={1 / n:.4f}, validation loss=1.0000" for n in (1, 2, 3)]
    assert [line for line in said if line.startswith("Step ")] == steps
    names = {client.files.retrieve(name).filename: name for name in done.result_files}
    assert client.files.content(names[f"{job.id}-report.html"]).text == "<p>the report</p>"
    assert client.files.content(names[f"{job.id}-step_metrics.csv"]).text.splitlines()[0].startswith("step,train_loss")
    assert {file.purpose for file in client.files.list(purpose="fine-tune-results")} == {"fine-tune-results"}
    verdict = next(e for e in client.fine_tuning.jobs.list_events(job.id) if e.type == "metrics" and "verdict" in e.data)
    assert verdict.data["verdict"] == "deploy" and len(verdict.data["interval"]) == 2
    reached = client.fine_tuning.jobs.checkpoints.list(job.id, limit=2)
    assert [entry.step_number for entry in reached] == [3, 2, 1] and reached.data[0].metrics.valid_loss == 1.0
    assert [entry.id for entry in client.fine_tuning.jobs.list(extra_query={"metadata[team]": "a"})] == [job.id]
    assert not client.fine_tuning.jobs.list(extra_query={"metadata[team]": "b"}).data
    assert client.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.delete(done.fine_tuned_model)


def test_a_verdict_against_is_a_result_without_a_model(client):
    job = wait(client, create(client, code=10).id)
    assert (job.status, job.fine_tuned_model, len(job.result_files)) == ("succeeded", None, 2)
    assert any(
        "No fine_tuned_model is given, for the verdict is prompting is enough" in line for line in messages(client, job.id)
    )


@pytest.mark.parametrize(
    ("orders", "code", "param", "message"),
    [
        ({"bad": "line 3, $.messages[1].content: expected text"}, "invalid_training_file", "training_file", "line 3, "),
        ({"bad": "found \udc89PNG"}, "invalid_training_file", "training_file", "found ?PNG"),  # a byte that is no character
        ({"code": 9}, "export_error", None, "the reason"),
        ({"code": 5}, "invalid_training_file", "training_file", "the reason"),
        ({"crash_at": 1}, "crashed", None, "crashed 4 times without getting further: its run ended with signal 9"),
    ],
    ids=["rows", "no text", "export", "data", "crash"],
)
def test_a_job_that_fails_says_why(server, client, orders, code, param, message):
    job = create(client, **orders)
    failed = wait(client, job.id)
    assert (failed.status, failed.error.code, failed.error.param) == ("failed", code, param)
    assert message in failed.error.message and str(server.service.place.directory) not in failed.error.message
    assert failed.fine_tuned_model is None and messages(client, job.id)[-1] == failed.error.message


@pytest.fixture(scope="module")
def plain():
    with httpx2.Client() as client:
        yield client


def counted(server, job_id):
    """The steps that a stub has done, each once."""
    file = server.service.place.run(job_id).path / "counted.txt"
    steps = file.read_text().split() if file.exists() else []
    assert steps == [str(n) for n in range(1, len(steps) + 1)], "no step was done twice"
    return len(steps)


def test_cancel_pause_and_resume(server, client):
    job = create(client, steps=4000, pause=0.02)
    while counted(server, job.id) < 3:
        time.sleep(0.05)
    later = create(client, steps=1)
    client.fine_tuning.jobs.pause(job.id)
    assert wait(client, job.id, "queued").status == "queued", "the client knows no paused"
    assert "The job is paused; what is finished is kept" in messages(client, job.id)
    assert wait(client, later.id).status == "succeeded", "a paused job lets others run"
    steps = counted(server, job.id)
    client.fine_tuning.jobs.resume(job.id)
    while counted(server, job.id) <= steps:
        time.sleep(0.05)
    client.fine_tuning.jobs.cancel(job.id)
    assert wait(client, job.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled", "the same again, as a client tries it"
    for verb in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError) as caught:
            verb(job.id)
        assert caught.value.code == "job_already_finished"


def test_a_job_outlives_its_file(client):
    file = upload(client, checking=0.5)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file)
    assert client.files.delete(file).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(file)
    assert wait(client, job.id).status == "succeeded"


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "other"}, 404, "model_not_found", "model"),
        ({"training_file": "file-none"}, 404, "file_not_found", "training_file"),
        ({"training_file": "../../etc/passwd"}, 404, "file_not_found", "training_file"),
        ({"training_file": None}, 400, "invalid_value", "training_file"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}}, 400, "unsupported_method", "method.type"),
        ({"method": {"type": "reinforcement"}}, 400, "unsupported_method", "method.type"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}}}, 400, "unknown_parameter", None),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}}, 400, "invalid_value", None),
        ({"hyperparameters": {"n_epochs": True}}, 400, "invalid_value", "hyperparameters.n_epochs"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 400, "unsupported_parameter", "integrations"),
        ({"suffix": "a/b"}, 400, "invalid_value", "suffix"),
        ({"suffix": "a" * 65}, 400, "invalid_value", "suffix"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"metadata": {"metric": "accuracy"}}, 400, "invalid_value", "metadata.metric"),
        ({"metadata": {"a": "b" * 513}}, 400, "invalid_value", "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "invalid_value", "metadata"),
        ({"tunesmith": {"function": "/etc/passwd:a"}}, 400, "unknown_parameter", "tunesmith.function"),
        ({"n_epochs": 3}, 400, "unknown_parameter", "n_epochs"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(client, body, status, code, param):
    whole = {"model": "tiny", "training_file": "file-none", **body}
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/fine_tuning/jobs", body=whole, cast_to=dict)
    error = caught.value
    assert (error.status_code, error.code) == (status, code), error.message
    assert error.param == param or (param is None and error.param.startswith("method.supervised.hyperparameters."))
    assert type(error) in (openai.NotFoundError, openai.BadRequestError)


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/fine_tuning/jobs?limit=0", "limit"),
        ("/fine_tuning/jobs?limit=9999999999999", "limit"),
        ("/fine_tuning/jobs?after=ftjob-none", "after"),
        ("/files?order=up", "order"),
        ("/files?after=%00", "after"),
    ],
)
def test_a_page_that_cannot_be_is_refused(client, path, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.get(path, cast_to=dict)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("file", "fields", "status", "code"),
    [
        (("a.jsonl", b"x" * 100_001), {"purpose": "fine-tune"}, 413, "file_too_large"),
        (("a.jsonl", b""), {"purpose": "fine-tune"}, 400, "invalid_file"),
        (("a.jsonl", b"{}"), {"purpose": "vision"}, 400, "invalid_value"),
        (("a.jsonl", b"{}"), {}, 400, "missing_required_parameter"),
        (("a.jsonl", b"{}"), {"purpose": "fine-tune", "path": "/etc"}, 400, "unknown_parameter"),
        (("a.jsonl", b"{}"), {"purpose": "fine-tune", "expires_after[anchor]": "created_at"}, 400, "invalid_value"),
        (("a.jsonl", b"{}"), {"purpose": "x" * 70_000}, 413, "request_too_large"),
    ],
)
def test_files_that_are_not_taken(server, client, file, fields, status, code):
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/files", files=[("file", file)], body=fields, cast_to=dict, options={"headers": FORM})
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert not [*server.service.place.files.glob(".*")], "nothing of it stays"


def test_a_form_without_an_end_is_not_read_for_ever(tmp_path):
    async def parts():
        for number in itertools.count():
            yield b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n' % number

    with pytest.raises(ApiError) as refused:
        asyncio.run(Upload(tmp_path / "upload", 1000).read("multipart/form-data; boundary=x", parts()))
    assert (refused.value.status, refused.value.code) == (413, "request_too_large")


FORM = {"Content-Type": "multipart/form-data"}


def test_a_file_is_kept_as_it_came_for_nobody_else_to_read(server, client):
    content = bytes(range(256)) * 300
    file = client.files.create(
        file=("../../é\n.jsonl", content), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert client.files.content(file.id).content == content and file.bytes == len(content)
    assert file.filename.rpartition("/")[2] == file.filename and file.expires_at == pytest.approx(file.created_at + 3600, abs=2)
    stored = server.service.place.files / f"{file.id}.jsonl"
    assert stored.stat().st_mode & 0o777 == 0o600
    ids = [entry.id for entry in client.files.list(order="asc")]
    assert ids == [entry.id for entry in client.files.list(order="desc", limit=3)][::-1] and file.id in ids


def test_the_same_request_again_is_the_same_job(client):
    file = upload(client)
    body, again = {"model": "tiny", "training_file": file}, {"x-stainless-retry-count": "1"}
    key = {"Idempotency-Key": "one"}
    first, second = (client.post("/fine_tuning/jobs", body=body, cast_to=dict, options={"headers": key}) for _ in range(2))
    assert first["id"] == second["id"]
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.post("/fine_tuning/jobs", body={**body, "seed": 2}, cast_to=dict, options={"headers": key})
    assert caught.value.code == "idempotency_key_reused"
    other = client.post("/fine_tuning/jobs", body={**body, "seed": 3}, cast_to=dict)
    tried = client.post("/fine_tuning/jobs", body={**body, "seed": 3}, cast_to=dict, options={"headers": again})
    assert other["id"] == tried["id"] != first["id"]
    fresh = client.post("/fine_tuning/jobs", body={**body, "seed": 3}, cast_to=dict)
    assert fresh["id"] != other["id"], "who says nothing of trying again means another job"
    for job in (first, other, fresh):
        wait(client, job["id"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("model", "training_file", "validation_file", "suffix", "seed", "metadata", "method", "hyperparameters", "tunesmith")


@settings(max_examples=150)
@given(
    value=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4) | JSON, path=st.sampled_from(["jobs", "estimate", "preview"])
)
def test_no_body_breaks_the_server(server, plain, value, path):
    body = json.dumps({"model": "tiny", **value} if isinstance(value, dict) else value).encode()
    reply = plain.post(f"http://127.0.0.1:{server.port}/v1/fine_tuning/{path}", content=body)
    assert 400 <= reply.status_code < 500 and reply.json()["error"]["message"], reply.text


def test_a_key_twice_is_refused_and_none_of_them_taken(server, plain):
    body = b'{"model": "tiny", "training_file": "file-a", "training_file": "file-b"}'
    reply = plain.post(f"http://127.0.0.1:{server.port}/v1/fine_tuning/jobs", content=body)
    assert reply.status_code == 400 and "two values of one name" in reply.json()["error"]["message"]


PARTS = st.sampled_from(
    (
        *(b"--x\r\n", b"--x--", b"--y", b"\r\n", b"\r\n\r\n", b"{}", b"\xff\x00:", b"Content-Disposition: a\r\n"),
        b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
        b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune',
    )
)
TYPES = ["multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary=", "text/plain", "; ="]


@settings(max_examples=150)
@given(parts=st.lists(PARTS | st.binary(max_size=5), max_size=8), kind=st.sampled_from([TYPES[0], *TYPES]))
def test_no_form_breaks_the_server(server, plain, parts, kind):
    reply = plain.post(f"http://127.0.0.1:{server.port}/v1/files", content=b"".join(parts), headers={"content-type": kind})
    assert reply.status_code in (200, 400), reply.text
    assert not [*server.service.place.files.glob(".*")], "nothing of it stays"


class Fake:
    """Models that are served, without an engine.

    Args:
        problem: what is in the way of serving any; None for nothing.
    """

    def __init__(self, problem=None):
        self.served, self.problem, self.may_go_on = {}, problem, threading.Event()

    async def add(self, run, name=None, *, force=False):
        while not self.may_go_on.is_set():
            await asyncio.sleep(0.01)
        if self.problem is not None:
            raise RunError(f"{run}: {self.problem}")
        self.served[name] = run

    async def remove(self, name):
        del self.served[name]


def test_who_reads_succeeded_may_ask_the_model(tmp_path):
    directory, models = write_settings(tmp_path / "jobs"), Fake()
    with Server(directory, models=models) as server, server.client() as client:
        job = create(client)
        while server.service.place.store.job(None, job.id).status != "publishing":
            time.sleep(0.05)
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
        models.may_go_on.set()
        done = wait(client, job.id)
        assert models.served == {done.fine_tuned_model: server.service.place.run(job.id).path}
    again, broken = Fake(), Fake("another base")
    again.may_go_on.set()
    broken.may_go_on.set()
    with Server(directory, models=again) as server, server.client() as client:
        while done.fine_tuned_model not in again.served:
            time.sleep(0.05)
        client.models.delete(done.fine_tuned_model)
        assert not again.served
    with Server(directory, models=broken) as server, server.client() as client:
        other = wait(client, create(client).id)
        assert other.status == "succeeded" and other.fine_tuned_model
        assert f"The model is not served here: runs/{other.id}: another base" in messages(client, other.id)


def test_nobody_sees_what_is_another_owners(tmp_path):
    service = {"owner_of": lambda request: request.headers["authorization"].removeprefix("Bearer ")}
    with Server(write_settings(tmp_path / "jobs"), **service) as server, server.client() as one:
        two = one.with_options(api_key="sk-y")
        file = upload(one)
        job = one.fine_tuning.jobs.create(model="tiny", training_file=file)
        done = wait(one, job.id)
        assert done.fine_tuned_model.startswith("ft:tiny:sk-x:")
        for ask in (
            lambda: two.files.retrieve(file),
            lambda: two.files.content(done.result_files[0]),
            lambda: two.files.delete(file),
            lambda: two.fine_tuning.jobs.create(model="tiny", training_file=file),
            lambda: two.fine_tuning.jobs.retrieve(job.id),
            lambda: two.fine_tuning.jobs.cancel(job.id),
            lambda: two.fine_tuning.jobs.list_events(job.id),
            lambda: two.models.delete(done.fine_tuned_model),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        assert not two.files.list().data and not two.fine_tuning.jobs.list().data and one.files.list().data


def test_quotas_of_a_key(server, client):
    file = upload(client, steps=400, pause=0.02)
    jobs = [client.fine_tuning.jobs.create(model="tiny", training_file=file).id for _ in range(6)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.with_options(max_retries=2).fine_tuning.jobs.create(model="tiny", training_file=file)
    assert caught.value.code == "quota_exceeded" and caught.value.response.headers["retry-after"] == "60"
    for job in jobs:
        client.fine_tuning.jobs.cancel(job)
    assert {wait(client, job).status for job in jobs} == {"cancelled"}
    with pytest.raises(openai.RateLimitError) as caught:
        for number in range(20):
            client.files.create(file=("a.jsonl", json.dumps(number).encode() * 90_000), purpose="fine-tune")
    assert caught.value.code == "quota_exceeded"
