"""Against a server on a loopback port that speaks the chat-completions schema."""

import json
import time

import pytest

from chat_server import Server, completion
from tunesmith.engines import openai_endpoint
from tunesmith.engines.openai_endpoint import OpenAIEndpoint
from tunesmith.errors import RecipeError, RunError
from tunesmith.rundir.records.calls import Call, Calls

KEY = "sk-canary-7f3a"
PROMPTS = [[{"role": "system", "content": "Echo."}, {"role": "user", "content": f"q{n}"}] for n in range(6)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr(openai_endpoint, "FIRST_PAUSE", 0.01)
    found = Server()
    yield found
    found.close()


def ask(server, prompts=PROMPTS, schema=None, **options):
    with OpenAIEndpoint(server.url, "big", "TEST_KEY", **options) as engine:
        return engine.generate(prompts, 20, lambda _: None, schema)


def test_answers_in_order_with_the_endpoints_own_usage(server):
    """The last answers first; as many requests under way as allowed, and no more."""

    def late(number, asked):
        time.sleep(0.05 if asked["messages"][-1]["content"] in ("q0", "q1") else 0.02)
        return 200, completion(asked["messages"][-1]["content"] * 2, "length" if number == 6 else "stop", 40 + number), {}

    server.reply = late
    done = []
    with OpenAIEndpoint(server.url + "/", "big", "TEST_KEY", headers={"X-Team": "a"}, concurrency=3) as engine:
        answers = engine.generate(PROMPTS, 20, done.append)
    assert [answer.text for answer in answers] == [f"q{n}q{n}" for n in range(6)] and sum(done) == 6
    assert server.most == 3 and sorted(answer.prompt_tokens for answer in answers) == list(range(41, 47))
    assert [answer.new_tokens for answer in answers] == [4] * 6 and [a.finished for a in answers].count(False) == 1
    assert all(answer.seconds >= 0.02 for answer in answers)
    assert {path for path, _ in server.requests} == {"/v1/chat/completions"}
    first = next(asked for _, asked in server.requests if asked["messages"] == PROMPTS[0])
    assert first == {"model": "big", "messages": PROMPTS[0], "temperature": 0, "max_tokens": 20}
    assert all(h["Authorization"] == f"Bearer {KEY}" and h["X-Team"] == "a" for h in server.headers)


def test_body_adds_keys_and_leaves_out(server):
    ask(server, PROMPTS[:1], body={"temperature": None, "max_tokens": None, "max_completion_tokens": 9})
    assert server.requests[0][1] == {"model": "big", "messages": PROMPTS[0], "max_completion_tokens": 9}


def test_no_key_where_none_is_named(server):
    with OpenAIEndpoint(server.url, "local") as engine:
        engine.generate(PROMPTS[:1], 5, lambda _: None)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(server, status):
    answer = server.reply
    server.reply = lambda number, asked: answer(number, asked) if number > 2 else (status, {"error": {"message": "busy"}}, {})
    assert [a.text for a in ask(server, PROMPTS[:1])] == ["Q0"] and len(server.requests) == 3


def test_retry_after_is_waited_for(server):
    answer = server.reply
    server.reply = lambda number, asked: answer(number, asked) if number > 1 else (429, {}, {"retry-after": "0.3"})
    started = time.perf_counter()
    (found,) = ask(server, PROMPTS[:1])
    assert time.perf_counter() - started > 0.3 and found.seconds < 0.3


def test_gives_up_in_the_end_and_tells(server):
    server.reply = lambda number, asked: (503, {"error": {"message": f"down, {KEY}"}}, {})
    with pytest.raises(RunError, match=r"chat/completions: 503 for model big: .*down, \[key\].*\(3 tries\)") as error:
        ask(server, PROMPTS[:1], retries=2)
    assert len(server.requests) == 3 and KEY not in str(error.value)


@pytest.mark.parametrize(
    ("reply", "told", "hint"),
    [
        ((401, {"error": {"message": f"Incorrect API key: {KEY}"}}), r"401 for model big: .*key: \[key\]", "api_key_env"),
        ((404, {"error": {"message": "no model big"}}), "404 .*no model big", "base_url"),
        ((400, {"error": {"message": "max_tokens is not supported"}}), "400 .*max_tokens", "body adds keys"),
        ((200, "<html>hello</html>"), "no JSON: <html>", "base_url"),
        ((200, {"choices": []}), "not a chat completion with usage", "OpenAI-compatible"),
        ((200, {"choices": completion("x")["choices"]}), "not a chat completion with usage", "OpenAI-compatible"),
    ],
)
def test_what_does_not_pass_ends_at_once(server, reply, told, hint):
    server.reply = lambda number, asked: (*reply, {})
    with pytest.raises(RunError, match=told) as error:
        ask(server, PROMPTS[:1])
    assert len(server.requests) == 1 and hint in error.value.hint and KEY not in str(error.value)


def test_one_failure_ends_the_call(server):
    """A request that waits a minute to be tried again does not hold up the error of another."""
    server.reply = lambda number, asked: (
        (401, {}, {}) if asked["messages"][-1]["content"] == "q1" else (429, {}, {"retry-after": "60"})
    )
    started = time.perf_counter()
    with pytest.raises(RunError, match="401"):
        ask(server)
    assert time.perf_counter() - started < 20 and len(server.requests) <= 6


def test_a_schema_goes_along_and_is_checked(server):
    schema = {"type": "object", "required": ["a"]}
    server.reply = lambda number, asked: (200, completion('{"a": 1}'), {})
    assert ask(server, PROMPTS[:1], schema)[0].text == '{"a": 1}'
    assert server.requests[0][1]["response_format"]["json_schema"]["schema"] == schema
    server.reply = lambda number, asked: (200, completion('{"b": 1}', "length"), {})
    assert not ask(server, PROMPTS[:1], schema)[0].finished  # cut at the budget: no fault of the endpoint
    for text in ('{"b": 1}', "Sure!"):
        server.reply = lambda number, asked, text=text: (200, completion(text), {})
        with pytest.raises(RunError, match="does not meet the schema"):
            ask(server, PROMPTS[:1], schema)


def test_labels_go_along_as_an_object_and_come_back_as_text(server):
    server.reply = lambda number, asked: (200, completion('{"label": "spam"}'), {})
    (answer,) = ask(server, PROMPTS[:1], ("ham", "spam"))
    assert answer.text == "spam" and answer.finished
    schema = server.requests[0][1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == ["ham", "spam"] and schema["additionalProperties"] is False
    server.reply = lambda number, asked: (200, completion('{"label": "eggs"}'), {})
    with pytest.raises(RunError, match="'eggs' is not one of"):
        ask(server, PROMPTS[:1], ("ham", "spam"))


def test_refused_before_any_request(server, monkeypatch):
    with pytest.raises(RecipeError, match="TEST_OTHER is not set"):
        OpenAIEndpoint(server.url, "big", "TEST_OTHER")
    for url in ("ftp://x/v1", "api.example.com/v1", f"https://user:{KEY}@example.com/v1", f"https://example.com/v1?key={KEY}"):
        with pytest.raises(RecipeError, match="base_url is not") as error:
            OpenAIEndpoint(url, "big")
        assert KEY not in str(error.value)
    monkeypatch.setenv("TEST_KEY", f"{KEY}\n")
    with pytest.raises(RecipeError, match="no header can carry"):
        OpenAIEndpoint(server.url, "big", "TEST_KEY")
    with OpenAIEndpoint(server.url, "big") as engine, pytest.raises(RunError, match="no log-probability"):
        engine.score([(PROMPTS[0], "x")], lambda _: None)


def test_nobody_there():
    with pytest.raises(RunError, match=r"127.0.0.1:9/v1/chat/completions: .*\(1 tries\)") as error:
        OpenAIEndpoint("http://127.0.0.1:9/v1", "big", retries=0).generate(PROMPTS, 5, lambda _: None)
    assert error.value.hint == "is the endpoint up?"


def test_tools_go_along_and_calls_come_back(server):
    """By the schema, examples in the prompt too; what the endpoint's parser left in the text reaches nobody."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}
    shown = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call, call]}]
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    answers = [
        {
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1.0}'}}],
        },
        {"content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>'},
        {"content": "", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}]},
        {"content": "No function."},
    ]

    def reply(number, asked):
        body = completion("", "tool_calls" if number == 1 else "stop")
        body["choices"][0]["message"] = {"role": "assistant", **answers[number - 1]}
        return 200, body, {}

    server.reply = reply
    prompts = [[*shown, {"role": "user", "content": "now"}]] * 4
    with OpenAIEndpoint(server.url, "big", concurrency=1) as engine:
        read = engine.generate(prompts, 20, lambda _: None, None, [tools, tools, tools, None])
    call_read = Call(name="f", arguments='{"a": 1.0}')
    assert [a.calls for a in read] == [Calls(calls=(call_read,)), Calls(lost=1), Calls(malformed=1), Calls()]
    assert json.loads(read[0].text) == {"tool_calls": [{"name": "f", "arguments": {"a": 1.0}}]} and read[0].finished
    sent = [asked for _, asked in server.requests]
    assert [asked.get("tools") for asked in sent] == [tools, tools, tools, None]
    turns = sent[0]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "tool", "user"]
    assert [json.loads(c["function"]["arguments"]) for c in turns[1]["tool_calls"]] == [{"a": [1, "é"]}] * 2
    assert [c["id"] for c in turns[1]["tool_calls"]] == [turn["tool_call_id"] for turn in turns[2:4]]
    assert len({turn["tool_call_id"] for turn in turns[2:4]}) == 2


def test_a_proxy_of_the_environment_is_asked_for_other_machines_and_never_for_this_one(server, monkeypatch):
    """A company's proxy cannot reach this machine, and would read what is asked of a model on it."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, server.url.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with OpenAIEndpoint("http://models.example/v1", "big") as engine:
        engine.generate(PROMPTS[:1], 5, lambda _: None)
    ask(server, PROMPTS[:1])
    assert [path for path, _ in server.requests] == ["http://models.example/v1/chat/completions", "/v1/chat/completions"]
