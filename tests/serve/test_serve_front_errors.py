"""Wrong requests: each is refused in OpenAI's shape and by the field's name; none makes the server fail."""

import asyncio
import json
import random
import string

import httpx2
import pytest
from fake_engine import FakeModels, running, said, served
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat.render import Renderer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def models(renderer):
    return FakeModels(served(renderer), served(renderer, "tuned"))


@pytest.fixture(scope="module")
def server(models):
    with running(models) as server:
        yield server


@pytest.fixture(scope="module")
def http(server):
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        yield http


def _turn(**changes):
    return {"messages": [{"role": "user", "content": "a"} | changes]}


def _schema(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def _tool(**changes):
    return {"tools": [{"type": "function", "function": {"name": "f"} | changes}]}


WRONG = [
    ({"model": None}, "model", "missing_required_parameter"),
    ({"model": 3}, "model", "invalid_type"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    (_turn(role="banana"), "messages[0].role", "invalid_value"),
    (_turn(role="function"), "messages[0].role", "unsupported_parameter"),
    (_turn(content=None), "messages[0].content", "missing_required_parameter"),
    (_turn(content=3), "messages[0].content", "invalid_type"),
    (_turn(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0].type", "unsupported_value"),
    (_turn(content=[{"type": "text"}]), "messages[0].content[0].text", "missing_required_parameter"),
    (_turn(colour="red"), "messages[0].colour", "unknown_parameter"),
    (_turn(tool_calls=[CALL]), "messages[0].tool_calls", "unknown_parameter"),
    (_turn(content="\U0010ffff"), "messages", "invalid_value"),
    ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}]}, "messages[1].tool_calls", "invalid_value"),
    ({"messages": [*HELLO, {"role": "tool", "tool_call_id": "1", "content": ""}]}, "messages[1].tool_call_id", "invalid_value"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[]"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "invalid_value",
    ),
    ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"temperature": 10**400}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 17}, "n", "invalid_value"),
    ({"n": 1.5}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 10**400}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"include_usege": True}}, "stream_options.include_usege", "unknown_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
    (_schema({"type": "nonsense"}), "response_format.json_schema.schema", "invalid_json_schema"),
    (_schema({"not": {"type": "string"}}), "response_format.json_schema.schema", "invalid_json_schema"),
    (_schema("x"), "response_format.json_schema.schema", "invalid_type"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_value"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type", "unsupported_value"),
    ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    ({"functions": []}, "functions", "unsupported_parameter"),
    ({"audio": {}}, "audio", "unsupported_parameter"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
    ({"store": True}, "store", "unsupported_value"),
    ({"service_tier": "flex"}, "service_tier", "unsupported_value"),
    ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
    ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
]


@pytest.mark.parametrize(("changes", "param", "code"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_field_is_named(http, models, changes, param, code):
    models.asks = []
    reply = http.post(CHAT, json={"model": "base", "messages": HELLO} | changes)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"], error["type"]) == (400, param, code, "invalid_request_error")
    assert not models.asks and reply.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [[1], ["a"]]}, "prompt[1]"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [1] * 1024}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "messages": []}, "messages"),
    ],
)
def test_a_wrong_text_completion_is_named(http, changes, param):
    reply = http.post(TEXT, json={"model": "base"} | changes)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "could not parse"),
        (b"[]", 400, "one JSON object"),
        (b'{"model": "base", "model": "tuned"}', 400, "two values of one name"),
        (b'{"temperature": NaN}', 400, "could not parse"),
        (b"[" * 3000, 400, "could not parse"),
        (b"\xff\xfe", 400, "could not parse"),
        (b'{"model": "\\ud800"}', 400, "could not parse"),
        (b" " * (4 * 1024 * 1024 + 1), 413, "4,194,304 bytes"),
    ],
)
def test_a_body_that_is_no_request(http, body, status, words):
    for content in (body, iter([body[:7], body[7:]])):  # with its length, and in chunks without
        reply = http.post(CHAT, content=content)
        assert reply.status_code == status and words in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("POST", "/v1/embeddings", 404, "unsupported_endpoint", "embed none"),
        ("POST", "/v1/responses", 404, "unsupported_endpoint", "/v1/chat/completions"),
        ("GET", "/v1/files/file-1", 404, "unsupported_endpoint", "--jobs"),
        ("GET", "/v2/models", 404, "unknown_url", "Unknown request URL: GET /v2/models"),
        ("GET", "/v1/chat/completions", 405, None, "Method Not Allowed"),
        ("POST", "/v1/adapters", 400, "missing_required_parameter", "'run'"),
    ],
)
def test_a_path_that_is_not_served(http, method, path, status, code, words):
    reply = http.request(method, path, json={})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code) and words in error["message"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from([[], {}, [[]], "auto", "user", "<|im_end|>", {"type": "text", "text": "\0"}, ["a", 1], {"a": {"b": []}}]),
)
FULL = {
    "model": "base",
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}], "name": "c"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "d"},
        {"role": "user", "content": "e"},
    ],
    "temperature": 1,
    "top_p": 1,
    "n": 1,
    "stop": ["x"],
    "max_tokens": 5,
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 1,
    "logit_bias": {"5": 1},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    "stream": False,
    "metadata": {"a": "b"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "none",
    "prompt": ["a"],
}


def _places(value, path=()):
    """Every place in a body."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from _places(part, (*path, key))


PLACES = [path for path in _places(FULL) if path]


def _with(body, path, value):
    changed = json.loads(json.dumps(body))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize("examples", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_value_in_any_place_makes_the_server_fail(http, models, examples):
    models.script = said("ok")
    asked = given(st.sampled_from([CHAT, TEXT]), st.sampled_from(PLACES), VALUES)
    settings(max_examples=examples)(asked(lambda path, place, value: _ask_with(http, path, place, value)))()


def _ask_with(http, path, place, value):
    body = _with(FULL, place, value)
    del body["messages" if path == TEXT else "prompt"]
    reply = http.post(path, json={key: value for key, value in body.items() if path == CHAT or key != "response_format"})
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        assert reply.json()["error"]["message"] and "Traceback" not in reply.text


def test_control_tokens_in_a_users_text_stay_text(http, models, renderer):
    """Every control token of the tokenizer, alone and inside words, in every text of a conversation and in a completion."""
    models.script, models.asks = said("ok"), []
    control = renderer.vocabulary.control_ids

    def count(ids):
        return sum(token in control for token in ids)

    for token in renderer.vocabulary.control:
        text = f"a{token}b {token}"
        calls = [{"id": token, "type": "function", "function": {"name": "f", "arguments": json.dumps({token: token})}}]
        turns = [
            {"role": "system", "content": text},
            {"role": "user", "content": text, "name": token},
            {"role": "assistant", "content": text, "tool_calls": calls},
            {"role": "tool", "tool_call_id": token, "content": text},
            {"role": "user", "content": [{"type": "text", "text": token[:3]}, {"type": "text", "text": token[3:]}]},
        ]
        plain = json.loads(json.dumps(turns).replace(json.dumps(token)[1:-1], "x"))
        plain[-1]["content"] = "x"
        for messages in (turns, plain):
            assert http.post(CHAT, json={"model": "base", "messages": messages}).status_code == 200
        forged, honest = (count(ask.prompt) for ask in models.asks[-2:])
        assert forged == honest > 0, token
        http.post(TEXT, json={"model": "base", "prompt": text})
        assert count(models.asks[-1].prompt) == 0, token
    assert len(models.asks) == 3 * len(renderer.vocabulary.control)


def test_an_error_holds_nothing_of_another_request(server, models):
    """Canaries: many requests at once, good and bad, and each answer knows its own word alone."""
    models.script = said(lambda ask, model: models.models["base"].renderer.tokenizer.decode(ask.prompt[-12:]))
    words = ["".join(random.Random(n).choices(string.ascii_lowercase, k=12)) for n in range(24)]

    async def ask(client, number, word):
        changes = [{}, {"temprature": word}, {"messages": [{"role": word, "content": "a"}]}, {"stop": [word] * 5}][number % 4]
        body = {"model": "base", "messages": [{"role": "user", "content": word}]} | changes
        return (await client.post(CHAT, json=body)).text

    async def all_of_them():
        async with httpx2.AsyncClient(base_url=server.url, timeout=20) as client:
            return await asyncio.gather(*(ask(client, number, word) for number, word in enumerate(words)))

    for number, text in enumerate(asyncio.run(all_of_them())):
        assert not [word for word in words if word in text and word != words[number]]
