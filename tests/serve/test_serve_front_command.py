"""The command and the server around the front: its address, its end, its shadow log, and a whole tiny run served for real."""

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import openai
import pytest
from fake_engine import FakeModels, running, said, served

from tunesmith import cli
from tunesmith.chat.render import Renderer
from tunesmith.errors import RunError
from tunesmith.serve.asking import Sampling
from tunesmith.serve.guard import Access
from tunesmith.serve.keys import Keys
from tunesmith.serve.run_server import ServerSettings, serve
from tunesmith.serve.shadow import Shadow
from tunesmith.serve.welcome import welcome

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


async def _never():
    raise AssertionError("models were opened")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "no key is asked for"),
        ({"host": "no.such.host.invalid"}, "no key"),
        ({"certificate": Path("a.pem")}, "TLS needs a certificate and its key"),
        ({"certificate": Path("a.pem"), "certificate_key": Path("b.pem")}, "--tls-cert a.pem"),
        ({"port": None}, "--port"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_loaded(settings, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if "port" in settings else 0
        with pytest.raises(RunError) as error:
            asyncio.run(serve(_never, ServerSettings(**{**settings, "port": port}), print))
    assert words in f"{error.value}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to serve"),
        (["--runs", "none"], "--runs none: no such folder"),
        (["run", "--engine", "vllm"], "--engine vllm and --url go together"),
        (["--jobs", "jobs", "--engine", "vllm", "--url", "http://127.0.0.1:1"], "--engine vllm needs a run"),
        (["run", "--url", "http://127.0.0.1:1"], "--engine vllm and --url go together"),
        (["run", "--key-env", "NO_KEY"], "--key-env NO_KEY: the environment variable is not set"),
        (["run", "--port", "0"], "run: no run"),
    ],
)
def test_a_command_that_cannot_be_meant(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tunesmith", "serve", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 7 and words in capsys.readouterr().err


def test_another_system_is_told_where_to_serve(monkeypatch, capsys):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("sys.argv", ["tunesmith", "serve", "run"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "serve needs Linux, here is darwin" in capsys.readouterr().err


def test_with_a_key_and_a_certificate_it_answers_by_tls(renderer, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("KEYS", "a-secret-key")
    models, known, there = FakeModels(served(renderer)), {}, threading.Event()
    models.close = lambda: asyncio.sleep(0)
    keys = Access(keys=Keys("KEYS"))
    files = {"certificate": tmp_path / "cert.pem", "certificate_key": tmp_path / "key.pem"}

    async def opened():
        return models

    def ready(url, _):
        known["url"] = url
        there.set()

    async def main():
        task = asyncio.create_task(serve(opened, ServerSettings(port=0, access=keys, **files), ready))
        loop = asyncio.get_running_loop()
        known["end"] = lambda: loop.call_soon_threadsafe(task.cancel)
        await asyncio.wait([task])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert there.wait(10) and known["url"].startswith("https://127.0.0.1:")
    http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=tmp_path / "cert.pem"))
    with openai.OpenAI(base_url=f"{known['url']}/v1", api_key="a-secret-key", http_client=http) as client:
        assert client.chat.completions.create(model="base", messages=HELLO).choices[0].message.content == "said by base"
    known["end"]()
    thread.join(10)


def test_the_shadow_log_holds_both_answers_and_no_old_line(renderer, tmp_path, caplog):
    file = tmp_path / "shadow.jsonl"
    old, new = (datetime.now(UTC) - timedelta(days=days) for days in (31, 29))
    file.write_text("".join(json.dumps({"time": time.isoformat(timespec="seconds")}) + "\n" for time in (old, new)))
    models = FakeModels(served(renderer), served(renderer, "tuned", system="Be brief."))
    models.script = said(lambda ask, model: f"{model.name}, {len(ask.prompt)}")
    with running(models, shadow=Shadow(file, 30)) as server, server.client() as client:
        for name in ("tuned", "base"):
            list(client.chat.completions.create(model=name, messages=HELLO, stream=True))
        server.wait_until(lambda: len(file.read_text().splitlines()) == 3)
    kept, *lines = map(json.loads, file.read_text().splitlines())
    assert kept["time"] == new.isoformat(timespec="seconds") and stat.S_IMODE(file.stat().st_mode) == 0o600
    for line, asked in zip(lines, ("tuned", "base"), strict=True):
        assert (line["asked"], line["messages"], line["same"]) == (asked, HELLO, False)
        base, tuned = (len(ask.prompt) for ask in (models.asks[1], models.asks[0]))
        assert {name: answer["content"] for name, answer in line["answers"].items()} == {
            "tuned": f"tuned, {tuned}",
            "base": f"base, {base}",
        }
    file.write_text("something of mine\n")
    with pytest.raises(RunError, match="line 1: not a line of a shadow log"):
        Shadow(file, 30)


def test_the_welcome_says_what_is_served_and_how_to_try_it(renderer):
    warm = served(renderer, "tuned", verdict="deploy", warnings=("forced: x",), sampling=Sampling(temperature=0.7, top_p=0.9))
    text = welcome("http://127.0.0.1:1", [served(renderer), warm], "KEYS", ["a note"])
    for words in ("one file, verdict deploy; temperature 0.7, top_p 0.9", "warning: forced: x", "greedy", "a note", "$KEYS"):
        assert words in text
    line = next(line for line in text.splitlines() if "curl" in line)
    assert json.loads(line.split(" -d ")[1].strip("'"))["model"] == "tuned"


class Forked:
    """The command line in a process that is forked from this one, since a fresh one would import for seconds what is here.

    Attributes:
        stdout: what it says, line by line.
        stderr: the file that holds the rest.
    """

    def __init__(self, folder: Path, *arguments: str):
        self.stderr = folder / "stderr"
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._run(writing, ["tunesmith", *arguments])
        os.close(writing)
        self.stdout = os.fdopen(reading)

    def _run(self, writing: int, arguments: list[str]) -> None:
        code = 99
        try:
            os.dup2(writing, 1)
            os.dup2(os.open(self.stderr, os.O_CREAT | os.O_WRONLY), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
            sys.argv = arguments
            cli.main()
            code = 0
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 0
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        with self.stdout:
            self.stdout.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_run_is_served_asked_and_ended_by_the_command(tiny_run, tmp_path):
    """The real thing: llama.cpp behind it, the official client before it; a signal lets the answer under way end."""
    process = Forked(tmp_path, "serve", f"mine={tiny_run.path}", "--port", "0", "--force", "--slots", "2")
    try:
        url = process.stdout.readline().split()[-1]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            name = client.models.list().data[-1].id
            question = [{"role": "user", "content": "a red car"}]
            whole = client.chat.completions.create(model=name, messages=question, max_tokens=40)
            stream = client.chat.completions.create(model=name, messages=question, max_tokens=40, stream=True)
            first = next(iter(stream))
            os.kill(process.pid, signal.SIGTERM)
            rest = [first, *stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in rest)
        assert (name, text) == ("mine", whole.choices[0].message.content) and rest[-1].choices[0].finish_reason
        code = process.wait()
    except BaseException:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        raise
    assert code == 0 and "Traceback" not in process.stderr.read_text()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)
