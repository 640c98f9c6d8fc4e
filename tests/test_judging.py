"""The judge of a run, over a socket: selection on dev, then every arm against the best prompt."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import write_recipe
from tunesmith import api
from tunesmith.api.judging import judge_arms
from tunesmith.evaluate.metrics import make_metric
from tunesmith.rundir import read_json, read_rows


class _Undecided(BaseHTTPRequestHandler):
    """Calls it a tie where a red thing is asked for, and has no verdict on others."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        text = "VERDICT: TIE" if "a red" in body["messages"][-1]["content"] else "Hard to say."
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def undecided():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Undecided)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_arms_are_judged_once_and_no_verdict_is_no_loss(undecided, tiny_dir, tmp_path):
    judge = {"base_url": f"http://127.0.0.1:{undecided.server_port}/v1", "model": "m", "rubric": "The right colour."}
    changes = {
        "task.metric": "judge",
        "task.judge": judge,
        "evaluate.arms": ["instruction", "few_shot"],
        "evaluate.few_shot": {"k": [1], "draws": 1, "selection": ["random"], "dev_rows": 4},
    }
    recipe_file = write_recipe(tmp_path, tiny_dir, changes)
    text = recipe_file.read_text().replace("  json_schema: schema.json\n", "")  # answers of noise would fail it, all alike
    recipe_file.write_text(text)
    run = api.open_run(recipe_file, tmp_path / "run")
    api.data(run)
    api.render(run)
    api.evaluate(run)
    choice, recipe = read_json(run.evaluation / "selection.json"), run.recipe()
    first = next(tried for tried in choice["candidates"] if tried["arm"] == "instruction")
    assert first["score"] == 0.5 and first["unscored"] == 0  # compared with itself, which needs no judge
    best = choice["best_prompt"]
    other = {"instruction": "few_shot", "few_shot": "instruction"}[best]
    assert all(row["score"] is None for row in read_rows(run.evaluation / best / "outputs.jsonl"))
    asked_on_dev = len(undecided.asked)
    judged = judge_arms(run, recipe, make_metric(recipe.task), best)
    assert not judged["calibration"]["calibrated"] and judged["arms"][best]["ties"] == judged["arms"][best]["n"]
    assert len(undecided.asked) > asked_on_dev
    assert all(row["score"] == 0.5 for row in read_rows(run.evaluation / best / "outputs.jsonl"))
    rows = read_rows(run.evaluation / other / "outputs.jsonl")
    scored = {row["prompt"][-1]["content"].startswith("a red"): row["score"] for row in rows if row["score"] not in (0.0, 1.0)}
    assert scored.get(True, 0.5) == 0.5 and None in {row["score"] for row in rows}
    assert judged["arms"][other]["unscored"] == sum(row["score"] is None for row in rows) > 0
    asked = len(undecided.asked)
    api.evaluate(run)
    assert judge_arms(run, recipe, make_metric(recipe.task), best) == judged and len(undecided.asked) == asked
