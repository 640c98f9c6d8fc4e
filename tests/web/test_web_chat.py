"""The chat page asks a running server what the race asked, and the browser nothing but us."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.testclient import TestClient

from chat_server import completion
from tunesmith.recipe import load_recipe
from tunesmith.rundir.records.evaluation import Selection, Verdict
from tunesmith.web.application import application

OURS = {"origin": "http://localhost:8765", "accept": "text/html"}


class Models:
    """A server of models: lists ``entries``, and answers with the name of the model that was asked."""

    def __init__(self):
        self.entries, self.asked, self.status = [], [], 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.say(200, {"data": outer.entries})

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append((asked, self.headers.get("authorization")))
                answer = completion(f"<i>{asked['model']}</i>", prompt_tokens=len(asked["messages"]))
                if asked.get("logprobs"):
                    tokens = [{"token": "<i>", "id": 7, "logprob": -0.1}, {"token": "x"}]
                    answer["choices"][0]["logprobs"] = {"content": tokens}
                self.say(outer.status, answer if outer.status == 200 else {"error": {"message": "too <many> at once"}})

            def say(self, status, body):
                raw = json.dumps(body).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "http://127.0.0.1:9/elsewhere")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def models():
    server = Models()
    server.entries = [
        {"id": "the-base", "object": "model", "parent": None, "tunesmith": {"run": None}},
        {"id": "ours", "object": "model", "parent": "the-base", "tunesmith": {"run": "run"}},
    ]
    yield server
    server.http.shutdown()
    server.http.server_close()


def _client(run, server, **keys):
    return TestClient(application(run.path, serve=f"{server.url}/v1", **keys), base_url="http://localhost:8765")


def _ask(client, question, **fields):
    return client.post("/runs/run/chat", data={"question": question, "turns": "[]", **fields}, headers=OURS)


def test_each_arm_is_asked_as_in_the_race_with_our_key(tiny_run, models):
    page = _ask(_client(tiny_run, models, serve_key="a key"), "What <colour>?")
    assert page.status_code == 200 and page.text.count('<pre dir="auto">&lt;i&gt;the-base&lt;/i&gt;') == 2
    assert "&lt;i&gt;ours&lt;/i&gt;" in page.text and "What &lt;colour&gt;?" in page.text and "<i>" not in page.text
    assert {key for _, key in models.asked} == {"Bearer a key"} and "a key" not in page.text
    asked = sorted((asked["model"], len(asked["messages"]), asked["messages"][0]["content"]) for asked, _ in models.asked)
    recipe = load_recipe(tiny_run.recipe_file)
    selection = Selection.read(tiny_run.evaluation / "selection.json")
    best = selection.arms[Verdict.read(tiny_run.verdict_file).best_prompt]
    wanted = [("the-base", 2, recipe.task.prompt), ("the-base", 2 + 2 * best.k, best.instruction)]
    wanted.append(("ours", 1 + (recipe.task.short_prompt is not None), recipe.task.short_prompt or "What <colour>?"))
    assert asked == sorted(wanted)
    assert all(asked["messages"][-1] == {"role": "user", "content": "What <colour>?"} for asked, _ in models.asked)


def test_a_conversation_goes_on_with_each_arms_own_answers(tiny_run, models):
    client = _client(tiny_run, models)
    first = _ask(client, "one")
    history = re.findall(r'name="turns" value="([^"]*)"', first.text)[0].replace("&#34;", '"')
    history = history.replace("&lt;", "<").replace("&gt;", ">")
    models.asked.clear()
    assert "<h2>deployed</h2>" in _ask(client, "two", turns=history).text
    for asked, _ in models.asked:
        turns = [(turn["role"], turn["content"]) for turn in asked["messages"][-3:]]
        assert turns == [("user", "one"), ("assistant", f"<i>{asked['model']}</i>"), ("user", "two")]


def test_an_arm_that_did_not_answer_is_told_no_empty_answer(tiny_run, models):
    client = _client(tiny_run, models)
    _ask(client, "two", turns='[{"question": "one", "answers": {"base": "red"}}]')
    told = {asked["model"]: [turn["content"] for turn in asked["messages"]] for asked, _ in models.asked}
    assert told["ours"][-1:] == ["two"] and "one" not in told["ours"] and "" not in told["ours"]


def test_token_ids_are_shown_where_they_are_asked_for(tiny_run, models):
    client = _client(tiny_run, models)
    assert "Tokens of the answer" not in _ask(client, "a red car").text
    page = _ask(client, "a red car", tokens="on").text
    assert page.count("Tokens of the answer") == 3 and "90.5 %" in page
    counts = [int(count) for count in re.findall(r"(\d+) token ids of the prompt", page)]
    assert len(counts) == 3 and min(counts) > 3 and all(asked["logprobs"] for asked, _ in models.asked[3:])


@pytest.mark.parametrize(
    ("entries", "status", "words"),
    [
        ([{"id": "another", "parent": None}], 200, "served: another. To serve it: tunesmith serve"),
        ([{"id": "ours", "parent": None, "tunesmith": {"run": "run"}}], 200, "no base beside this model"),
        (None, 429, "429: too &lt;many&gt; at once"),
        (None, 302, "302"),
    ],
)
def test_what_cannot_be_answered_says_why(tiny_run, models, entries, status, words):
    models.entries, models.status = entries or models.entries, status
    page = _ask(_client(tiny_run, models), "one")
    assert page.status_code == 200 and words in page.text


def test_a_server_that_is_not_there_is_said(tiny_run, models):
    client = _client(tiny_run, models)
    models.http.shutdown()
    models.http.server_close()
    page = client.get("/runs/run/chat", headers=OURS)
    assert "cannot be reached" in page.text and "tunesmith serve" in page.text
    assert ">one &lt;question&gt;</textarea>" in _ask(client, "one <question>").text, "nobody types it again"


@pytest.mark.parametrize(
    "turns", ["{}", "[1]", '[{"question": 1, "answers": {}}]', '[{"question": "a", "answers": {"base": 1}}]', "[" * 9_000]
)
def test_a_form_that_is_none_of_ours_is_refused(tiny_run, models, turns):
    client = _client(tiny_run, models)
    assert _ask(client, "one", turns=turns).status_code == 400
    assert _ask(client, "x" * 600_000).status_code == 413
    assert models.asked == []
