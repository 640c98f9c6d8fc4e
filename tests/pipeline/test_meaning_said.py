"""What every verb that reads rows says of how they are read, and rows that no answer can be scored of."""

import json
import logging

import pytest

import tunesmith as ts
from shared import write_recipe
from tunesmith.errors import DataError
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.init import init

LABELLED = [{"text": f"message {i} of ferry {i % 7}", "label": ("late", "lovely")[i % 2]} for i in range(60)]
SCORED = {"metric": "classification", "labels": ["late", "lovely"], "prompt": "Classify."}
COLUMNS = "--column prompt=text --column completion=label (in a recipe data.columns: {prompt: text, completion: label})"


def recipe_of(tmp_path, tiny_dir, **data):
    recipe = write_recipe(tmp_path, tiny_dir, {"task": SCORED, **{f"data.{key}": value for key, value in data.items()}})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    return api.open_run(recipe, tmp_path / "run")


def test_plain_texts_are_refused_where_answers_are_scored(tmp_path, tiny_dir):
    run = recipe_of(tmp_path, tiny_dir)
    for verb in (api.data, lambda run: api.advise(run, quick=True)):
        with pytest.raises(DataError, match=r"60 plain texts, .*\(task.metric: classification\)") as refusal:
            verb(run)
        assert COLUMNS in refusal.value.hint and "data.format: text" in refusal.value.hint
    with pytest.raises(DataError, match="a plain text, which asks nothing") as refusal:
        init(str(tmp_path / "rows.jsonl"), str(tiny_dir), out=tmp_path / "new.yaml")
    assert COLUMNS in refusal.value.hint


def test_the_hint_of_refused_texts_follows_from_what_they_are(tmp_path, tiny_dir):
    hints = {
        "--parse-template": {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"},
        "one of mood, day: --column prompt=text --column completion=LABEL": {"text": "late", "mood": "bad", "day": "monday"},
        "bring rows that ask": {"text": "An oak is a tree."},
    }
    run = recipe_of(tmp_path, tiny_dir)
    for hint, row in hints.items():
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError) as refusal:
            api.data(run)
        assert hint in refusal.value.hint


@pytest.mark.parametrize("data", [{"columns": {"prompt": "text", "completion": "label"}}, {"format": "text"}])
def test_named_so_they_are_read_and_said(tmp_path, tiny_dir, data, caplog):
    run = recipe_of(tmp_path, tiny_dir, **data)
    with caplog.at_level(logging.INFO):
        api.data(run)
    kind = "text" if "format" in data else "prompt_completion"
    assert f"data: rows.jsonl: format {kind}" in caplog.messages
    assert ("data: column label is ignored (60 rows)" in caplog.messages) == (kind == "text")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        api.render(run)
    assert f"render: rows.jsonl: format {kind}" in caplog.messages


def test_a_preview_says_what_is_wrong_with_the_rows_it_shows(tiny_dir):
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>why</think>so"}]}
    lines = ts.preview([row] * 3, tiny_dir, rows=2).lines
    assert lines[0] == "list of 3 rows: format messages"
    assert lines[1].startswith("wrong: 2 of 2 (100.00%) rows whose answers hold reasoning as text")
    assert "data.reasoning: split" in lines[2] and "rows after these were not looked at" in lines[-1]
    assert not any("not looked at" in line for line in ts.preview([row], tiny_dir).lines)


def test_a_row_that_names_a_date_beside_the_template_is_told(tmp_path, tiny_dir):
    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ 'Today is ' + strftime_now('%d %B %Y') }}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    texts = ("Sail today's 3 boats.", "Today is 3 May 2024.", "The date is 2024-05-03, sail.", "Knowledge cutoff: June 2024")
    rows = [{"messages": [{"role": "system", "content": text}, *turns]} for text in texts]
    report = ts.check(rows, model=tiny_dir, template=template)
    found = next(finding for finding in report.quality.findings if finding.code == "own-date")
    assert found.severity == "wrong" and found.count == 3 and found.examples[0].place == "row 2"
    assert any(line.startswith("wrong: 3 of 4 (75.00%) rows whose system text names a date") for line in report.headlines)
    assert any("names a date" in line for line in ts.preview(rows, tiny_dir, template=template).lines)
    assert not [finding for finding in ts.check(rows, model=tiny_dir).quality.findings if finding.code == "own-date"]
