"""A model behind an API is recorded, switched off, and the verdict says whether the tuned one may take its place."""

import json
import shutil

import openai
import pytest

from chat_server import Server, completion
from shared import toy_rows
from tunesmith import cli
from tunesmith.data.read import ReadOptions
from tunesmith.engines.recorded import RecordedEngine, read_recording
from tunesmith.errors import RecipeError, RunError
from tunesmith.evaluate.gate import Case, decide
from tunesmith.evaluate.replacement import replacement
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.record import Asked, estimate, record, rows_to_ask
from tunesmith.recipe import dump_recipe
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.evaluation import Comparison, Terms

ROWS = toy_rows()
ANSWERS = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in ROWS}


def comparison(gain, low, high):
    return Comparison(gain=gain, low=low, high=high, p=0.5, won=1, lost=1, n=400, units=400)


@pytest.fixture
def old():
    """The model that will be switched off: it answers as the rows do."""
    server = Server()
    server.reply = lambda number, asked: (200, completion(ANSWERS[asked["messages"][-1]["content"]]), {})
    yield server
    server.close()


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:8], ROWS[0]]))  # one stands there twice
    return path


def _asked(server, **changes):
    return Asked(**{"endpoint": server.url, "model": "ft:old", "concurrency": 1, **changes})


def _record(data, out, asked):
    return record(rows_to_ask(str(data), out, asked, ReadOptions()), out, asked)


def test_each_question_is_asked_once_and_kept_as_the_official_client_hears_it(old, rows, tmp_path):
    found = _record(rows, tmp_path / "old.jsonl", _asked(old, prices=(2.0, 4.0)))
    answers = read_recording(tmp_path / "old.jsonl")
    assert (found.rows, found.asked, len(answers), len(old.requests)) == (8, 8, 8, 8)
    assert found.cost == pytest.approx((found.prompt_tokens * 2.0 + found.new_tokens * 4.0) / 1e6)
    client = openai.OpenAI(base_url=old.url, api_key="none")
    for answer in answers.values():
        heard = client.chat.completions.create(model="ft:old", messages=answer.prompt, temperature=0, max_tokens=1024)
        assert (heard.choices[0].message.content, heard.usage.completion_tokens) == (answer.text, answer.new_tokens)


def test_a_kill_loses_no_answer_and_nothing_is_paid_twice(old, rows, tmp_path):
    out = tmp_path / "old.jsonl"
    answer = old.reply

    def dies(number, asked):
        return answer(number, asked) if number <= 3 else (401, {"error": {"message": "over"}}, {})

    old.reply = dies
    with pytest.raises(RunError, match=r"over.*\(3 rows in a row\)"):
        _record(rows, out, _asked(old))
    whole = out.read_text()
    assert len(read_recording(out)) == 3
    out.write_text(whole + whole.splitlines()[0][:40])  # torn in the middle of a line
    old.reply, before = answer, len(old.requests)
    to_ask = rows_to_ask(str(rows), out, _asked(old), ReadOptions())
    assert estimate(to_ask, _asked(old)).startswith("3 of 8 answers are there; 5 rows to ask")
    assert _record(rows, out, _asked(old)).asked == 5 == len(old.requests) - before
    assert out.read_text().startswith(whole) and len(read_recording(out)) == 8
    assert _record(rows, out, _asked(old)).asked == 0


def test_a_row_that_is_refused_is_named_and_the_others_go_on(old, rows, tmp_path):
    answer = old.reply
    old.reply = lambda number, asked: (400, {"error": "filtered"}, {}) if number == 2 else answer(number, asked)
    found = _record(rows, tmp_path / "old.jsonl", _asked(old))
    assert (found.asked, len(found.failed)) == (7, 1) and "filtered" in found.failed[0] and found.failed[0].startswith("line 2")


def test_answers_of_another_model_or_way_are_not_mixed(old, rows, tmp_path):
    out = tmp_path / "old.jsonl"
    _record(rows, out, _asked(old))
    for other in ({"model": "ft:other"}, {"max_new_tokens": 5}, {"body": {"top_p": 0.5}}):
        with pytest.raises(RunError, match=r"holds answers of ft:old .* asked in another way"):
            _record(rows, out, _asked(old, **other))


def test_the_command_asks_nobody_without_a_word(old, rows, tmp_path, monkeypatch, capsys):
    options = ["--endpoint", old.url, "--model", "ft:old", "--data", str(rows), "--out", str(tmp_path / "old.jsonl")]

    def main(*more):
        monkeypatch.setattr("sys.argv", ["tunesmith", "record", *options, *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr()

    code, talk = main()
    assert code == 2 and "--yes" in talk.err and not old.requests
    code, talk = main("--price", "2", "4", "--yes")
    assert code == 0 and "8 rows to ask" in talk.err and "by the given prices" in talk.err
    assert talk.out.startswith("8 of 8 answers of ft:old in ")
    assert main("--body", "[1]")[0] == 2


def _replacing(tiny_run, folder, recording, min_gain=0.05):
    shutil.copytree(tiny_run.path, folder / "run")
    run = RunDir(folder / "run")
    recipe = run.recipe()
    raw = json.loads(recipe.model_dump_json())
    raw["evaluate"]["arms"] = [*recipe.evaluate.arms, "external:old"]
    raw["evaluate"]["external"] = {"old": {"recorded": str(recording), "replace": True}}
    raw["task"]["min_gain"] = min_gain
    run.recipe_file.write_text(dump_recipe(type(recipe).model_validate(raw)))
    return run


def test_a_run_says_whether_the_tuned_model_may_replace_what_was_recorded(tiny_run, old, tmp_path):
    out = tmp_path / "old.jsonl"
    assert _record(tiny_run.path, out, _asked(old)).rows == len(read_rows(tiny_run.data / "test.jsonl"))
    old.close()
    trained = tiny_run.stages()["train"]
    run = _replacing(tiny_run, tmp_path, out)
    verdict = api.run(run)
    (replaced,) = verdict.replaced
    assert (replaced.name, replaced.score, run.stages()["train"]) == ("external:old", 1.0, trained)
    assert "external:old" not in {rival.name for rival in verdict.rivals} | set(verdict.ahead)
    assert (replaced.state, verdict.decision) == ("loses too much", "not good enough")
    assert "against external:old, which it is to replace, it loses 100" in verdict.reason
    assert "external:old" in (run.path / "report.html").read_text()


def test_a_question_that_was_not_recorded_is_not_made_up(old, rows, tmp_path):
    out = tmp_path / "old.jsonl"
    _record(rows, out, _asked(old))
    asked = [[{"role": "user", "content": text}] for text in ("a red car", "a red moon")]
    engine = RecordedEngine(out)
    assert engine.generate(asked[:1], 1, lambda _: None)[0].text == ANSWERS["a red car"]
    with pytest.raises(RunError, match="1 of 2 questions were not recorded, such as 'a red moon'"):
        engine.generate(asked, 1, lambda _: None)


@pytest.mark.parametrize(
    ("gain", "against_old", "decision"),
    [
        ((0.10, 0.06, 0.14), (0.00, -0.04, 0.04), "deploy"),
        ((0.00, -0.04, 0.04), (0.00, -0.04, 0.04), "may replace it"),
        ((0.10, 0.06, 0.14), (-0.10, -0.14, -0.06), "not good enough"),
        ((0.10, 0.06, 0.14), (-0.04, -0.08, 0.00), "too little data to tell"),
        ((-0.20, -0.30, -0.10), (0.00, -0.04, 0.04), "not better"),
    ],
)
def test_the_rule(gain, against_old, decision):
    terms = Terms(min_gain=0.05)
    old = replacement("external:old", 0.8, comparison(*against_old), terms)
    row = decide(Case(terms=terms, comparisons=(comparison(*gain),), replaced=(old,)))
    assert row.decision == decision


def test_the_keys_that_belong_together(make_recipe):
    live = {"base_url": "http://localhost:1/v1", "model": "m"}
    for entry, words in [
        ({"recorded": "a.jsonl"}, "add replace: true"),
        ({"recorded": "a.jsonl", "replace": True, **live}, "one or the other"),
        ({"model": "m"}, "base_url and model are needed"),
    ]:
        with pytest.raises(RecipeError, match=words):
            make_recipe({"evaluate.arms": ["instruction", "external:old"], "evaluate.external": {"old": entry}})
