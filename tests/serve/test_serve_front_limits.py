"""Who may ask, how much, how long; and what is left when a client or the server goes."""

import asyncio
import logging
import socket
import threading

import httpx2
import openai
import pytest
from fake_engine import FakeModels, running, said, served

from tunesmith.chat.render import Renderer
from tunesmith.errors import RunError
from tunesmith.serve.asking import End, Piece
from tunesmith.serve.guard import Access
from tunesmith.serve.keys import Keys, Rate
from tunesmith.serve.limits import Limits

HELLO = [{"role": "user", "content": "hello"}]
ASK = {"model": "base", "messages": HELLO}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture
def models(renderer):
    return FakeModels(served(renderer), served(renderer, "tuned"))


def _held(gate):
    """A script: a word, then nothing until the gate opens."""

    def script(ask, model):
        yield Piece("a")
        while not gate.is_set():
            yield 0.005
        yield End("stop", 1, 0, 1)

    return script


def _in_background(call):
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_a_key_is_asked_for_and_its_rate_kept(models, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tunesmith")
    monkeypatch.setenv("KEYS", "first-secret,\nsecond-secret")
    clock = [0.0]
    access = Access(keys=Keys("KEYS"), rate=Rate(2, clock=lambda: clock[0]))
    with running(models, access=access) as server:
        for wrong in ("none", "first-secre", "first-secret2", ""):
            with pytest.raises(openai.AuthenticationError) as error:
                server.client(wrong or "x").models.list()
            assert (error.value.code == "invalid_api_key" and wrong not in str(error.value)) or not wrong
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert httpx2.get(f"{server.url}/metrics").status_code == 401
        first, second = server.client("first-secret"), server.client("second-secret")
        first.models.list(), first.models.list()
        with pytest.raises(openai.RateLimitError) as error:
            first.models.list()
        assert (error.value.code, error.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "31")
        second.models.list()
        clock[0] = 30.0
        first.models.list()
    assert "key 2" in caplog.text and "secret" not in caplog.text


@pytest.mark.parametrize("value", ["", "short", "has-\u00e9-letter"])
def test_a_key_that_cannot_be_one(value, monkeypatch):
    monkeypatch.setenv("KEYS", value)
    with pytest.raises(RunError, match="--key-env KEYS"):
        Keys("KEYS")


def test_other_hosts_and_pages_are_turned_away(models):
    access = Access(hosts=frozenset({"127.0.0.1"}), origins=("https://a.example",))
    with running(models, access=access) as server:

        def status(**headers):
            return httpx2.get(f"{server.url}/v1/models", headers=headers).status_code

        assert [status(), status(host="evil.example"), status(host=f"127.0.0.1.evil.example:{server.url[-4:]}")] == [
            200,
            403,
            403,
        ]
        assert [status(origin="https://a.example"), status(origin="https://b.example"), status(origin="null")] == [
            200,
            403,
            403,
        ]
        asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
        reply = httpx2.request("OPTIONS", f"{server.url}{CHAT}", headers=asked)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (204, "https://a.example")


def test_a_full_house_turns_away_at_once(models):
    gate = threading.Event()
    models.script = _held(gate)
    with running(models, limits=Limits(slots=1, queue=1)) as server:
        waiting = [_in_background(lambda: server.client().chat.completions.create(**ASK)) for _ in range(2)]
        server.wait_until(lambda: server.front.house.inside == 2)
        with pytest.raises(openai.RateLimitError) as error:
            server.client().chat.completions.create(**ASK)
        assert (error.value.code, error.value.response.headers["retry-after"]) == ("server_busy", "1")
        figures = httpx2.get(f"{server.url}/metrics").text
        assert "tunesmith_requests_running 1.0" in figures and "tunesmith_requests_waiting 1.0" in figures
        gate.set()
        for thread in waiting:
            thread.join(10)
        assert server.client().chat.completions.create(**ASK).choices[0].message.content == "a"
    assert models.most == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_slot(models, stream):
    gate = threading.Event()
    models.script = _held(gate)
    with running(models, limits=Limits(slots=1)) as server:
        with socket.create_connection(server.socket.getsockname()) as connection:
            body = httpx2.Request("POST", server.url, json={**ASK, "stream": stream}).content
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.address}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            server.wait_until(lambda: models.running == 1)
        server.wait_until(lambda: models.running == 0 and server.front.house.inside == 0)
        assert models.closed == 1
        gate.set()
        assert server.client().chat.completions.create(**ASK).choices[0].message.content == "a"
        assert 'status="499"' in httpx2.get(f"{server.url}/metrics").text or stream


@pytest.mark.parametrize(
    ("limits", "script", "status", "code"),
    [
        ({"first_token_s": 0.05}, [0.5, Piece("a")], 504, "timeout"),
        ({"whole_s": 0.05}, [Piece("a"), 0.5, Piece("b")], 504, "timeout"),
        ({"queue_s": 0.05}, None, 503, "queue_timeout"),
    ],
)
def test_what_takes_too_long_is_ended(models, limits, script, status, code):
    gate = threading.Event()
    models.script = _held(gate) if script is None else lambda ask, model: iter(script)
    with running(models, limits=Limits(slots=1, **limits)) as server:
        if script is None:
            _in_background(lambda: server.client().chat.completions.create(**ASK))
            server.wait_until(lambda: models.running == 1)
        reply = httpx2.post(f"{server.url}{CHAT}", json=ASK)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert status == 503 or reply.headers["x-should-retry"] == "false"
        gate.set()
        server.wait_until(lambda: models.running == 0)


def test_a_body_that_does_not_come_is_not_waited_for(models):
    with running(models, limits=Limits(body_s=0.05)) as server, socket.create_connection(server.socket.getsockname()) as slow:
        slow.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {server.address}\r\nContent-Length: 9\r\n\r\n".encode())
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_a_silent_stream_says_that_it_lives(models):
    models.script = lambda ask, model: iter([0.2, Piece("a"), End("stop", 1, 0, 1)])
    with running(models, limits=Limits(ping_s=0.05)) as server:
        text = httpx2.post(f"{server.url}{CHAT}", json={**ASK, "stream": True}).text
        assert text.startswith(": ping\n\n") and text.endswith("data: [DONE]\n\n")
        assert len(list(server.client().chat.completions.create(**ASK, stream=True))) == 3


def test_a_slow_reader_holds_no_slot(models):
    models.script = said("x" * 2_000_000, size=2000)
    with running(models, limits=Limits(slots=1)) as server, server.client() as client:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # or the kernel takes it all
        stream = client.chat.completions.create(**ASK, stream=True)
        next(iter(stream))
        server.wait_until(lambda: models.running == 0)
        assert server.front.house.inside == 1
        assert len(list(stream)) > 1000


def test_a_server_that_goes_finishes_what_it_has_begun_and_takes_nothing_new(models):
    gate, answers = threading.Event(), []
    models.script = _held(gate)
    with running(models) as server:
        thread = _in_background(lambda: answers.append(server.client().chat.completions.create(**ASK)))
        server.wait_until(lambda: models.running == 1)
        server.front.house.leaving = True
        for ask in (lambda: server.client().models.list(), lambda: server.client().chat.completions.create(**ASK)):
            with pytest.raises(openai.InternalServerError) as error:
                ask()
            assert (error.value.status_code, error.value.code) == (503, "shutting_down")
        assert httpx2.get(f"{server.url}/health").status_code == 503
        gate.set()
        thread.join(10)
    assert answers[0].choices[0].message.content == "a"


def test_figures_are_by_model_and_the_log_holds_no_word_of_a_prompt(models, caplog):
    caplog.set_level(logging.INFO)
    models.script = said("an answer")
    with running(models) as server, server.client() as client:
        client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "canary"}])
        client.chat.completions.with_raw_response.create(model="tuned", messages=HELLO)
        for model in ("unknown", "tuned"):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(model=model, messages=[{"role": "canary", "content": ""}])
        server.wait_until(lambda: server.front.house.inside == 0)
        figures = httpx2.get(f"{server.url}/metrics").text
    for line in (
        'tunesmith_requests_total{model="tuned",status="200"} 2.0',
        'tunesmith_requests_total{model="tuned",status="400"} 1.0',
        'tunesmith_requests_total{model="",status="404"} 1.0',
        'tunesmith_tokens_total{kind="output",model="tuned"} 18.0',
        'gen_ai_server_time_to_first_token_seconds_count{gen_ai_operation_name="chat",gen_ai_request_model="tuned"} 2.0',
        'tunesmith_model{model="tuned",parent="base",verdict="",version="version of tuned"} 1.0',
    ):
        assert line in figures, line
    assert "POST /v1/chat/completions 200" in caplog.text and "canary" not in caplog.text + figures


def test_adapters_come_and_go(models, tmp_path):
    for name in ("mine", "bad", "dead"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("/etc")
    with running(models, runs=tmp_path) as server:

        def post(**body):
            reply = httpx2.post(f"{server.url}/v1/adapters", json=body)
            return reply.status_code, reply.json().get("id") or reply.json()["error"]["message"]

        assert post(run="mine") == (200, "mine") and post(run="mine", name="a/b") == (200, "a/b")
        assert post(run="bad")[0] == 400 and "hint: serve it with force" in post(run="bad")[1]
        assert post(run="dead") == (503, "the engine with it did not stay: it was killed; all is served as before")
        assert post(run="bad", force=True) == (200, "bad")
        for path in ("../x", "/etc", "link/..", "a\0b", "none", "."):
            assert post(run=path)[0] == 400, path
        listed = httpx2.get(f"{server.url}/v1/adapters").json()["data"]
        assert [entry["id"] for entry in listed] == ["mine", "a/b", "bad"]
        deleted = [httpx2.delete(f"{server.url}/v1/adapters/{name}").status_code for name in ("a/b", "a/b", "base", "mine")]
        assert deleted == [200, 404, 400, 200]
    with running(models) as server:
        assert post(run="mine")[0] == 403
        assert httpx2.delete(f"{server.url}/v1/adapters/bad").status_code == 403  # nothing could bring it back


def test_many_at_once_are_answered_each_with_its_own(models, renderer):
    models.script = said(lambda ask, model: f"{model.name} {renderer.tokenizer.decode(ask.prompt[-12:])}")

    async def ask(client, number):
        name = ("base", "tuned")[number % 2]
        reply = await client.post(CHAT, json={"model": name, "messages": [{"role": "user", "content": f"q{number}q"}]})
        text = reply.json()["choices"][0]["message"]["content"]
        return text.startswith(name) and f"q{number}q" in text

    async def ask_all():
        async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(64)))

    with running(models, limits=Limits(slots=3)) as server:
        assert all(asyncio.run(ask_all()))
    assert models.most == 3
