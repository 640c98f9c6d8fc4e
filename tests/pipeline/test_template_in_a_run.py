"""What a template does to a run: a date that is written once, and rows that become several documents."""

import json
from datetime import datetime, timedelta

import pytest

from shared import write_recipe
from tunesmith.pipeline import base as pipeline_base
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.base import base_of, keep_moment
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.training import Training
from tunesmith.train.documents import Documents
from tunesmith.train.prefix import row_tokens

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DATED = "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y, %H:%M:%S') }}.<|im_end|>\n" + CHATML
# An answer is announced while it is the last, and remembered without it.
FORGETS = CHATML.replace("{{ m.content }}", "{{ 'Answer: ' if m.role == 'assistant' and loop.last }}{{ m.content }}")


def _at(monkeypatch, moment):
    monkeypatch.setattr(pipeline_base, "datetime", type("Clock", (datetime,), {"now": classmethod(lambda cls: moment)}))


def test_a_run_writes_the_date_of_its_first_rendering_on_every_later_day(tmp_path, tiny_dir, talk, monkeypatch):
    (tmp_path / "dated.jinja").write_text(DATED)
    recipe = write_recipe(tmp_path, tiny_dir, {"chat.template": "dated.jinja"})
    run = api.open_run(recipe, tmp_path / "run")
    day = datetime(2026, 11, 28, 23, 59, 58)
    _at(monkeypatch, day)
    api.data(run)
    api.render(run)
    assert "render: the chat template writes a date; in this run it is 2026-11-28, from now on" in talk()
    tokens, template = run.tokens("train").read_bytes(), run.template_file.read_text()
    assert run.manifest().moment == day.isoformat() and "Today is 28 November 2026, 23:59:58." in base_of(
        run, run.recipe()
    ).renderer.text(read_rows(run.data / "dev.jsonl")[0].messages)
    api.train(run)
    adapter = run.stages()["train"]
    _at(monkeypatch, day + timedelta(days=40))
    run.recipe_file.write_text(run.recipe_file.read_text().replace("max_new_tokens: 12", "max_new_tokens: 13"))
    api.render(run)  # made again, on another day
    assert "render: the chat template writes a date; in this run it is 2026-11-28, since its first rendering" in talk()
    assert run.tokens("train").read_bytes() == tokens and run.template_file.read_text() == template
    api.train(run)
    assert run.stages()["train"] == adapter
    inner = RunDir.create(tmp_path / "run" / "curve" / "0.5", run.recipe(), replace=True)
    keep_moment(run, inner)
    inner.data.mkdir()
    assert pipeline_base.settle_template(inner, run.recipe()).renderer.template == template


def test_rows_of_several_documents_stay_rows(tmp_path, tiny_dir, talk):
    (tmp_path / "forgets.jinja").write_text(FORGETS)
    changes = {
        "chat.template": "forgets.jinja",
        "task": {"metric": "exact_match", "max_new_tokens": 12},
        "train.max_length": 96,
    }
    recipe = write_recipe(tmp_path, tiny_dir, {**changes, "data.path": "talks.jsonl"})
    with (tmp_path / "talks.jsonl").open("w") as file:
        for n in range(60):
            turns = [
                ({"role": "user", "content": f"q{n} {t}"}, {"role": "assistant", "content": f"a{n} {t}"}) for t in range(3)
            ]
            file.write(json.dumps({"messages": [message for turn in turns for message in turn]}) + "\n")
    run = api.open_run(recipe, tmp_path / "run")
    api.data(run)
    api.render(run)
    train, rows = Documents.open(run.tokens("train")), read_rows(run.data / "train.jsonl")
    assert train.rows == len(rows) and len(train) == 3 * len(rows) and {*train.row_sizes.tolist()} == {3}
    assert [train.row_id(n) for n in range(0, len(train), 3)] == [row.id for row in rows]
    rendered, tokenizer = Rendered.read(run.rendered_file), base_of(run, run.recipe()).renderer.tokenizer
    assert rendered.train_tokens == int(row_tokens(train).sum()) < int(train.lengths.sum())
    assert rendered.longest == int(train.lengths.max()) <= 96
    for turn in range(3):
        ((start, end),) = train.spans(turn).tolist()
        assert tokenizer.decode(train.ids(turn)[start:end]) == f"Answer: {rows[0].messages[2 * turn + 1]['content']}<|im_end|>"
        prompt = base_of(run, run.recipe()).renderer.prompt_ids(rows[0].messages[: 2 * turn + 1])
        assert train.ids(turn)[:start].tolist() == prompt
    assert f"{train.rows:,} rows as {len(train):,} documents" in "".join(talk())
    api.train(run)
    assert Training.read(run.training_file).fill == pytest.approx(1, abs=0.3)
    api.run(run, until="train")
    assert "train: up to date" in talk()
