"""The judge of a run, over a socket: selection on dev, then every arm against the best prompt."""

import json

import pytest

from chat_server import Server, completion
from shared import write_recipe
from tunesmith.advise.checklist import METRIC
from tunesmith.evaluate.arms import read_outputs
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.advise_measured import calibration_of
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.evidence import Judgement


@pytest.fixture
def undecided():
    """Calls it a tie where a red thing is asked for, and has no verdict on others."""

    def reply(number, asked):
        return 200, completion("VERDICT: TIE" if "a red" in asked["messages"][-1]["content"] else "Hard to say."), {}

    server = Server()
    server.reply = reply
    yield server
    server.close()


def test_arms_are_judged_once_and_no_verdict_is_no_loss(undecided, tiny_dir, tmp_path):
    judge = {"base_url": undecided.url, "model": "m", "rubric": "The right colour."}
    changes = {
        "task.metric": "judge",
        "task.judge": judge,
        "evaluate.arms": ["instruction", "few_shot"],
        "evaluate.few_shot": {"k": [1], "draws": 1, "selection": ["random"]},
    }
    recipe_file = write_recipe(tmp_path, tiny_dir, changes)
    text = recipe_file.read_text().replace("  json_schema: schema.json\n", "")  # answers of noise would fail it, all alike
    recipe_file.write_text(text)
    run = api.open_run(recipe_file, tmp_path / "run")
    api.data(run)
    api.render(run)
    api.evaluate(run)
    selection = Selection.read(run.evaluation / "selection.json")
    first = next(trial for trial in selection.candidates if trial.arm == "instruction")
    assert first.score == 0.5 and first.unscored == 0  # compared with itself, which needs no judge
    best = selection.leader
    other = {"instruction": "few_shot", "few_shot": "instruction"}[best]
    assert all(row.score is None for row in read_outputs(run.evaluation / best))
    asked_on_dev = len(undecided.requests)
    api.make(run, ["judge"])
    judged = Judgement.read(run.evaluation / "judge.json")
    assert not judged.calibration.calibrated and judged.arms[best].ties == judged.arms[best].n
    assert len(undecided.requests) > asked_on_dev
    assert all(row.score is None for row in read_outputs(run.evaluation / best))  # answers stay as they were given
    assert all(row.score == 0.5 for row in read_outputs(run.evaluation / "judged" / best))
    rows = read_outputs(run.evaluation / "judged" / other)
    scored = {row.prompt[-1]["content"].startswith("a red"): row.score for row in rows if row.score not in (0.0, 1.0)}
    assert scored.get(True, 0.5) == 0.5 and None in {row.score for row in rows}
    assert judged.arms[other].unscored == sum(row.score is None for row in rows) > 0
    asked = len(undecided.requests)
    api.evaluate(run)
    api.make(run, ["judge"])
    assert Judgement.read(run.evaluation / "judge.json") == judged and len(undecided.requests) == asked


@pytest.mark.parametrize("right", [True, False])
def test_advice_measures_the_judge_and_does_not_believe_a_file_of_labels(right, tiny_dir, tmp_path):
    labels = tmp_path / "labels.jsonl"
    rows = [{"question": "q", "reference": "r", "a": f"long {i}", "b": f"x {i}", "label": "ab"[i % 2]} for i in range(120)]
    for row in rows[1::2]:
        row["a"], row["b"] = row["b"], row["a"]  # people like the longer answer
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reply(number, asked):
        first, second = (part.splitlines()[1] for part in asked["messages"][-1]["content"].split("[answer ")[1:])
        return 200, completion(f"VERDICT: {'A' if (len(first) > len(second)) == right else 'B'}"), {}

    server = Server()
    server.reply = reply
    judge = {"base_url": server.url, "model": "m", "rubric": "Longer.", "human_labels": str(labels)}
    recipe_file = write_recipe(tmp_path, tiny_dir, {"task.metric": "judge", "task.judge": judge})
    recipe_file.write_text(recipe_file.read_text().replace("  json_schema: schema.json\n", ""))
    run = api.open_run(recipe_file, tmp_path / "run")
    calibration = calibration_of(run.recipe())
    server.close()
    assert calibration.calibrated is right and calibration.n == 120 and calibration.kappa == (1.0 if right else -1.0)
    asked = len(server.requests)
    check = next(check for check in api.advise(run, quick=True).checks if check.check == METRIC)
    assert check.state == "unknown" and "--quick asks no model" in check.evidence and len(server.requests) == asked
