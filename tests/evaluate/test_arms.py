"""An arm's records, and what is asked again when something changes; an endpoint over a socket."""

import json
from dataclasses import replace

import pytest

from chat_server import Server, completion
from shared import toy_rows, write_recipe
from tunesmith.engines.engine import Answer
from tunesmith.errors import RunError
from tunesmith.evaluate import arms
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.metric import Metric
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import TokenPrice
from tunesmith.rundir import read_rows
from tunesmith.rundir.records.answers import Scores
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.evidence import RetrievalRecall
from tunesmith.rundir.rows import Row

ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows()[:6])]
ASKED = [row.messages[:-1] for row in ROWS]


class Engine:
    """Answers the first half right; counts how often it is asked."""

    def __init__(self):
        self.calls = self.closed = 0

    def generate(self, prompts, max_new_tokens, advance, allowed=None, tools=None):
        self.calls += 1
        right = [row.messages[-1]["content"] for row in ROWS[: len(ROWS) // 2]]
        return [Answer(text, 100, 10, 0.5, True) for text in right + ["{}"] * (len(prompts) - len(right))]

    def close(self):
        self.closed += 1


def test_kept_answers_are_scored_anew_without_asking(make_recipe, tmp_path):
    engine, metric = Engine(), make_metric(make_recipe().task)
    price = arms.by_tokens(TokenPrice(prompt_per_million=1.0, output_per_million=10.0))
    figures = arms.run_arm(tmp_path / "a", tmp_path, lambda: engine, "k", ROWS, ASKED, metric, 8, price=price)
    assert (figures.score, figures.n, figures.unscored, engine.calls, engine.closed) == (0.5, 6, 0, 1, 1)
    assert figures.ms == 500 and figures.cost == pytest.approx(200e-6)
    strict = Metric(name="never", score=lambda answer, reference: {"score": 0.0}, tie_break="score", binary=True)
    by_time = arms.by_time(3600.0)
    again = arms.run_arm(tmp_path / "a", tmp_path, lambda: engine, "k", ROWS, ASKED, strict, 8, price=by_time)
    assert (again.score, again.cost, engine.calls) == (0.0, 0.5, 1) and "parse" not in again.figures
    arms.run_arm(tmp_path / "a", tmp_path, lambda: engine, "other", ROWS, ASKED, metric, 8)
    assert engine.calls == 2
    same = arms.run_arm(tmp_path / "b", tmp_path, lambda: engine, "other", ROWS, ASKED, metric, 8)  # asked the same
    assert (same.score, engine.calls) == (0.5, 2)


def test_what_the_twin_answered_alike_is_not_asked_and_an_answer_that_was_cut_is(tmp_path):
    class Cuts(Engine):
        def generate(self, prompts, max_new_tokens, advance, allowed=None, tools=None):
            self.calls += len(prompts)
            texts = ["red", "red", "a red one", "green"] if allowed is None else ["red"] * len(prompts)
            return [Answer(text, 9, 1, 0.5, n != 1) for n, text in enumerate(texts)]

    metric = Metric(name="length", score=lambda answer, _: {"score": float(len(answer))}, tie_break="score", binary=False)
    engine, four = Cuts(), (ROWS[:4], ASKED[:4], metric, 8)
    arms.run_arm(tmp_path / "free", tmp_path, lambda: engine, "k", *four)
    labels = ("red", "green")
    arms.run_arm(tmp_path / "held", tmp_path, lambda: engine, "l", *four, labels, twin_key="k")
    assert engine.calls == 4 + 2
    outputs = arms.read_outputs(tmp_path / "held")
    assert [(row.output, row.score, row.free) for row in outputs] == [
        ("red", 3.0, True),
        ("red", 3.0, None),
        ("red", 3.0, None),
        ("green", 5.0, True),
    ]


def test_an_unscored_row_is_no_wrong_one_and_a_corpus_figure_is_of_the_whole(tmp_path):
    def score(answer, reference):
        return {"score": None if answer == "{}" else 1.0, "length": float(len(answer))}

    metric = Metric(name="some", score=score, corpus=lambda rows: len(rows) / 4, tie_break="score", binary=False)
    figures = arms.run_arm(tmp_path / "a", tmp_path, Engine, "k", ROWS, ASKED, metric, 8)
    assert figures.score == 0.75 and figures.unscored == 3
    outputs = arms.read_outputs(tmp_path / "a")
    mean = arms.summary("a", outputs, replace(metric, corpus=None))
    assert mean.score == 1.0 and mean.unscored == 3 and mean.figures == figures.figures
    assert [output.score for output in outputs] == [1.0] * 3 + [None] * 3
    assert Scores.read(tmp_path / "a" / "scores.json") == Scores(key="k", summary=figures)


def test_an_unreadable_line_is_named_and_a_torn_neighbour_only_asked_again(tmp_path):
    metric = Metric(name="one", score=lambda answer, reference: {"score": 1.0}, tie_break="score", binary=True)
    arms.run_arm(tmp_path / "a", tmp_path, Engine, "k", ROWS, ASKED, metric, 8)
    (tmp_path / "a" / "scores.json").write_text("{")
    engine = Engine()
    arms.run_arm(tmp_path / "b", tmp_path, lambda: engine, "k", ROWS, ASKED, metric, 8)
    assert engine.calls == 1
    file = tmp_path / "b" / "outputs.jsonl"
    file.write_text(file.read_text().replace('"finished": true', '"finished": "yes"', 1))
    with pytest.raises(RunError, match=r"outputs.jsonl:1: finished: .*Output is expected"):
        arms.read_outputs(tmp_path / "b")


@pytest.fixture
def endpoint():
    """Knows the answers; each takes 50 tokens of prompt and is counted as 10."""

    def reply(number, asked):
        colour, thing = asked["messages"][-1]["content"].split()[-2:]
        answer = completion(json.dumps({"colour": colour, "thing": thing}))
        return 200, {**answer, "usage": {"prompt_tokens": 50, "completion_tokens": 10}}, {}

    server = Server()
    server.reply = reply
    yield server
    server.close()


def test_an_endpoint_is_an_arm_with_a_price_and_its_key_is_in_no_file(endpoint, tiny_dir, tmp_path, monkeypatch, talk):
    monkeypatch.setenv("THEIR_KEY", "canary-5142")
    named = {
        "base_url": endpoint.url,
        "model": "big",
        "api_key_env": "THEIR_KEY",
        "price": {"prompt_per_million": 2.0, "output_per_million": 10.0},
        "body": {"top_p": 1},
    }
    changes = {
        "evaluate.arms": ["instruction", "few_shot", "retrieval", "external:big", "external:big:retrieval"],
        "evaluate.external": {"big": named},
        "evaluate.few_shot": {"k": [1], "draws": 1},
    }
    run = api.open_run(write_recipe(tmp_path, tiny_dir, changes), tmp_path / "run")
    api.data(run)
    api.render(run)
    api.evaluate(run)
    choice = Selection.read(run.evaluation / "selection.json")
    dev, names = choice.dev_rows, choice.finalists
    assert choice.leader.startswith("external:big") and len(names) == 3 and dev == len(read_rows(run.data / "dev.jsonl"))
    rows = arms.read_outputs(run.evaluation / "external:big")
    assert all(row.score == 1.0 and row.cost == pytest.approx(200e-6) for row in rows)
    assert len(endpoint.requests) == 2 * (dev + len(rows))
    (path, body), key = endpoint.requests[-1], endpoint.headers[-1]["Authorization"]
    assert path == "/v1/chat/completions" and key == "Bearer canary-5142" and body["top_p"] == 1 and body["model"] == "big"
    local = arms.read_outputs(run.evaluation / "retrieval")
    theirs = arms.read_outputs(run.evaluation / "external:big:retrieval")
    assert [row.prompt for row in local] == [row.prompt for row in theirs]
    assert local[0].prompt[-1]["content"].startswith("Documents that may help:") and local[0].cost is None
    assert RetrievalRecall.read(run.evaluation / "retrieval.json").n == len(rows)
    sealed = {row.question for row in read_rows(run.data / "test.jsonl")}
    assert not [row for row in local if any(f" {asked}\n" in row.prompt[-1]["content"] for asked in sealed)]
    lines = talk()
    written = "".join(p.read_text(errors="replace") for p in run.path.rglob("*") if p.is_file()) + lines
    assert "canary" not in written and "answer recall@5" in lines.split("evaluate: retrieval gets")[0]
    api.evaluate(run)
    assert len(endpoint.requests) == 2 * (dev + len(rows))  # all up to date
