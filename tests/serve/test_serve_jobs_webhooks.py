"""Webhooks: what the official client unwraps, tried until it was received, and to no other address than the settings'."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from jobs_server import Server, upload, wait, write_settings

from tunesmith.errors import RecipeError
from tunesmith.serve.jobs import webhooks
from tunesmith.serve.jobs.service import Service

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two characters").decode()


class Receiver(BaseHTTPRequestHandler):
    """Says 503 at first, then redirects, then takes it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.came.append((self.path, dict(self.headers), body))
        status = {1: 503, 2: 302}.get(len(self.server.came), 200)
        self.send_response(status)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.came = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_ending_is_told_until_it_was_received(tmp_path, receiver, monkeypatch):
    monkeypatch.setenv("HOOK", SECRET)
    hook = {
        "url": f"http://127.0.0.1:{receiver.server_port}/hook",
        "secret_env": "HOOK",
        "types": ["fine_tuning.job.succeeded"],
    }
    directory = write_settings(tmp_path / "jobs", webhooks=[hook])
    with Server(directory) as server, server.client() as client:
        bad = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, bad="no"))
        job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client))
        assert wait(client, bad.id).status == "failed" and wait(client, job.id).status == "succeeded"
        while not receiver.came:
            time.sleep(0.05)
    sender = webhooks.Sender(server.service.place)
    for _ in range(2):  # later, which is now
        with server.service.place.store.writing() as db:
            db.execute("UPDATE webhooks SET next_at = 0")
        sender.send_due()
    with server.service.place.store.reading() as db:
        (row,) = db.execute("SELECT state, attempts FROM webhooks").fetchall()
    assert tuple(row) == ("delivered", 3)
    assert [path for path, _, _ in receiver.came] == ["/hook"] * 3, "no redirect is followed"
    assert len({headers["webhook-id"] for _, headers, _ in receiver.came}) == 1
    official = openai.OpenAI(api_key="sk-x", webhook_secret=SECRET)
    for _, headers, body in receiver.came:
        event = official.webhooks.unwrap(body, headers)
        assert event.type == "fine_tuning.job.succeeded" and event.data.id == job.id
    with pytest.raises(openai.InvalidWebhookSignatureError):
        official.webhooks.unwrap(json.dumps({"id": 1}), headers)
    official.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"webhooks": [{"url": "http://a", "secret_env": "NO_HOOK"}]}, "NO_HOOK is not set\nhint: export NO_HOOK=whsec_"),
        (
            {"webhooks": [{"url": "file:///etc/passwd", "secret_env": "A"}]},
            r"webhooks\.0\.url: found 'file:///etc/passwd': expected",
        ),
        ({"webhooks": [{"url": "http://a", "secret_env": "BAD_HOOK"}]}, "BAD_HOOK holds after whsec_ is no base64"),
        ({"models": {}}, "models: found|models: no base model is named"),
        ({"models": {"a/b": "c"}}, "models"),
        ({"models": {"a": "gone.gguf"}}, r"models\.a: .*/jobs/gone\.gguf is not there"),
        ({"recipe": {"model": "x"}}, "model is what each job says for itself"),
        ({"recipe": {"data": {"path": "x"}}}, r"data\.path is what each job says for itself"),
        ({"recipe": {"trian": {}}}, r"recipe\.trian: no such key"),
        ({"recipe": {"train": {"lernrate": 1}}}, r"recipe\.train\.lernrate: no such key"),
        ({"quota": {}}, "unknown key quota\nhint: did you mean quotas"),
        ({"quotas": {"file_bytes": "much"}}, "expected an amount of memory like 16GB"),
    ],
)
def test_settings_that_are_wrong(tmp_path, keys, message, monkeypatch):
    monkeypatch.setenv("BAD_HOOK", "whsec_a")
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        Service(write_settings(tmp_path / "jobs", **keys))


def test_the_settings_of_a_first_start(tmp_path, talk):
    with pytest.raises(RecipeError, match="names no base model"):
        Service(tmp_path / "one")
    with pytest.raises(RecipeError, match=r"--base: tiny: .*/gone\.gguf is not there"):
        Service(tmp_path / "one", {"tiny": "gone.gguf"})
    service = Service(tmp_path / "one", {"tiny": "owner/tiny"})
    assert service.settings.models == {"tiny": "owner/tiny"} and service.settings.serve_anyway is False
    talk()
    assert Service(tmp_path / "one", {"other": "owner/other"}).settings.models == {"tiny": "owner/tiny"}
    assert "owner/other is not among the models" in talk()
