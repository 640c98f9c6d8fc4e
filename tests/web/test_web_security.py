"""Who is answered: loopback names without a key, whoever has the key elsewhere, and no other site."""

import pytest
from starlette.testclient import TestClient
from web_runs import make_run

from tunesmith.errors import RunError
from tunesmith.web.application import application
from tunesmith.web.security import COOKIE, is_loopback
from tunesmith.web.server import show


def _client(folder, host="localhost:8765", **keys):
    return TestClient(application(folder, **keys), base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:9000"}, 200),  # through a tunnel
        ({"host": "[::1]:8765"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "evil@localhost"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost:8765"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
    ],
)
def test_where_a_request_comes_from(tmp_path, headers, status):
    make_run(tmp_path)
    answer = _client(tmp_path).get("/", headers=headers)
    assert answer.status_code == status
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")


def test_what_asks_for_more_than_a_page_names_its_origin(tmp_path):
    make_run(tmp_path)
    assert _client(tmp_path).post("/runs/toy/chat").status_code == 403
    assert _client(tmp_path).post("/runs/toy/chat", headers={"origin": "http://localhost:8765"}).status_code == 404


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("localhost", True), ("127.9.9.9:1", True), ("[::1]", True), ("0.0.0.0", False), ("[", False), ("localhost:x@a", False)],
)
def test_names_of_this_machine_alone(host, is_ours):
    assert is_loopback(host) is is_ours


def test_a_key_comes_by_the_form_and_stays_as_a_cookie_that_is_not_the_key(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.web.security.PAUSE", 0.0)
    make_run(tmp_path)
    client = _client(tmp_path, "box.example:8765", key="a key")
    ours = {"origin": "http://box.example:8765"}
    for path in ("/", "/runs/toy", "/runs/toy/stream", "/stream"):
        assert client.get(path).status_code == 401
    assert client.get("/static/page.css").status_code == 200
    wrong = client.post("/enter", content="key=another", headers=ours)
    assert wrong.status_code == 403 and COOKIE not in wrong.cookies
    assert client.post("/enter", content="key=a+key", headers={"origin": "http://evil.example"}).status_code == 403
    right = client.post("/enter", content="key=a+key", headers=ours)
    cookie = right.headers["set-cookie"]
    assert right.status_code == 303 and "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and "a key" not in cookie
    assert client.get("/").status_code == 200
    assert _client(tmp_path, "box.example", key="a key").get("/", headers={"cookie": cookie}).status_code == 200  # restarted
    assert _client(tmp_path, "box.example", key="new").get("/", headers={"cookie": cookie}).status_code == 401
    assert _client(tmp_path, "box.example", key="a key").get("/", headers={"authorization": "Bearer a key"}).status_code == 200


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"host": "0.0.0.0"}, "--key-env"),
        ({"host": "no.such.host.invalid", "key": "k"}, "no address of this machine"),
        ({"serve": "ftp://box"}, "no address of a server"),
        ({"serve": "http://key@box"}, "no address of a server"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_to_do(tmp_path, keys, words):
    with pytest.raises(RunError) as error:
        show(tmp_path, port=0, **keys)
    assert words in str(error.value) and error.value.hint
