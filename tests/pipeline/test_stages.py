"""The verbs on the tiny model: what a run leaves behind, what is skipped, what is redone."""

import json
import math
import shutil
from dataclasses import replace

import pytest

from outputs import arms_that_read
from shared import write_recipe
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import DataError, RunError
from tunesmith.evaluate.arms import read_outputs
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline import verdict
from tunesmith.pipeline.stage import Session, state_of
from tunesmith.pipeline.table import EXPORT
from tunesmith.rundir import RunDir, read_json, read_rows
from tunesmith.rundir.events import read_events
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.events import ArmScore, Decision, Metric, Progress, StageEnd, StageStart
from tunesmith.rundir.records.export import Export
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import read_metrics


def test_a_run_leaves_what_the_contract_says(tiny_run):
    names = {str(p.relative_to(tiny_run.path)) for p in tiny_run.path.rglob("*") if p.is_file()}
    arms = ("instruction", "few_shot", "tuned", "deployed")
    assert {
        "recipe.yaml",
        "manifest.json",
        "stages.json",
        "report.html",
        "metrics.jsonl",
        "metrics.csv",
        "data/train.jsonl",
        "data/split.json",
        "data/train.arrow",
        "data/dev.arrow",
        "data/report.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "export/merged/model.safetensors",
        "export/toy-Q8_0.gguf",
        "export/toy-Q4_K_M.gguf",
        "evaluation/verdict.json",
        "evaluation/selection.json",
        *(f"evaluation/{arm}/{file}" for arm in arms for file in ("outputs.jsonl", "scores.json")),
    } <= names
    assert not [name for name in names if ".tmp" in name] and "export/toy-F16.gguf" not in names
    split = read_json(tiny_run.data / "split.json")
    for arm in arms:
        assert [row.id for row in read_outputs(tiny_run.evaluation / arm)] == split["parts"]["test"]
    readings = arms_that_read(tiny_run)
    more = [path.name for path in sorted(tiny_run.finalists.iterdir())]
    assert [name for name in readings if name in arms] == list(arms)
    assert more and sorted(readings) == sorted([*arms, *more]) and readings.index("tuned") > max(map(readings.index, more))
    stages = tiny_run.stages()
    assert {"data", "render", "select", "train", "export", "evaluate deployed"} <= set(stages)
    assert all(stage.peak_bytes > 1e7 for stage in stages.values())
    manifest = read_json(tiny_run.manifest_file)
    assert manifest["model"]["files"]["model.safetensors"] and manifest["data"]["sha256"] and manifest["packages"]["torch"]


def test_rows_that_ask_the_same_are_one_group_of_the_verdict(tiny_run, tmp_path):
    """Without data.group_by too: the split holds such rows together, so the statistics do."""
    shutil.copytree(tiny_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "*.gguf", "merged"))
    run = RunDir(tmp_path / "run")
    verdict.execute(run, run.recipe(), Session(), "")
    assert Verdict.read(run.verdict_file).clusters is None
    rows = [json.loads(line) for line in (run.data / "test.jsonl").read_text().splitlines()]
    for first, second in zip(rows[::2], rows[1::2], strict=False):
        asked = first["messages"][-2]["content"]
        second["messages"][-2]["content"] = f"  {asked.upper()} "
    (run.data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdict.execute(run, run.recipe(), Session(), "")
    assert Verdict.read(run.verdict_file).clusters == math.ceil(len(rows) / 2)


def test_no_test_row_is_in_any_prompt(tiny_run):
    test = {row.question for row in read_rows(tiny_run.data / "test.jsonl")}
    for arm in ("instruction", "few_shot"):
        for row in read_outputs(tiny_run.evaluation / arm):
            assert not test & {m["content"] for m in row.prompt[:-1]}


def test_exported_file_is_the_tuned_model_with_the_training_template(tiny_run, tiny_dir, tokenizer):
    reader = GgufReader(tiny_run.export / "toy-Q8_0.gguf")
    assert reader.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == 2
    files = Export.read(tiny_run.export / "export.json").files
    assert list(files) == ["Q8_0", "Q4_K_M"] and 8.4 < files["Q8_0"].bits_per_weight < 8.6


def test_everything_is_skipped_the_second_time_and_redone_when_inputs_change(tiny_run, tmp_path, talk):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    before = run.stages()
    api.run(run)
    assert run.stages() == before
    lines = talk()
    for stage in before:
        assert f"{stage}: up to date" in lines
    text = run.recipe_file.read_text()
    run.recipe_file.write_text(text.replace("test_fraction: 0.25", "test_fraction: 0.3"))
    api.data(run)
    assert run.stages()["data"].inputs != before["data"].inputs
    api.render(run)
    assert run.stages()["render"] == before["render"]  # every row kept its part, so nothing else is made again


def test_files_of_an_older_form_are_made_again(tiny_run):
    recipe, known = tiny_run.recipe(), tiny_run.stages()["export"]
    assert EXPORT.form > 1 and state_of(tiny_run, EXPORT, recipe, known)[0].state == "done"
    older = replace(known, inputs={name: value for name, value in known.inputs.items() if name != "form of its files"})
    state = state_of(tiny_run, EXPORT, recipe, older)[0]
    assert (state.state, state.why) == ("stale", (f"form of its files nothing -> {EXPORT.form}",))


def test_a_stage_whose_predecessor_is_missing_says_which_to_run(tmp_path, tiny_dir):
    run = api.open_run(write_recipe(tmp_path, tiny_dir), tmp_path / "run")
    for verb, words in [
        (api.chat, "data was not run"),
        (api.export, "train was not run"),
        (api.parity, "train was not run"),
        (api.verdict, "evaluate instruction was not run"),
        (api.report, "evaluate instruction was not run"),
    ]:
        with pytest.raises(RunError, match=words) as caught:
            verb(run)
        assert "tunesmith" in caught.value.hint


def test_rows_that_are_too_long_or_do_not_fit_the_metric_are_refused(tmp_path, tiny_dir):
    run = api.open_run(write_recipe(tmp_path, tiny_dir, {"train.max_length": 20}), tmp_path / "run")
    api.data(run)
    with pytest.raises(DataError, match=r"longer than train.max_length 20 tokens: [0-9a-f]{12} \(\d+\)") as caught:
        api.render(run)
    assert "59 keeps 100 %" in caught.value.hint
    plain = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "not json"}]}
    recipe = write_recipe(tmp_path, tiny_dir)
    rows = [json.dumps({"messages": [{"role": "user", "content": str(i)}, plain["messages"][1]]}) for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    run = api.open_run(recipe, tmp_path / "plain")
    api.data(run)
    api.render(run)
    with pytest.raises(DataError, match="its own reference does not score"):
        api.evaluate(run)
    with pytest.raises(RunError, match="not an arm of this recipe"):
        api.evaluate(run, ("gepa",))


def test_a_label_without_a_test_row_is_said(tmp_path, tiny_dir, talk):
    task = {"metric": "macro_f1", "labels": ["red", "green", "mauve"]}
    changes = {"task": task, "data.path": str(tmp_path / "labels.jsonl")}
    rows = [{"prompt": f"a thing, number {n}", "completion": ("red", "green")[n % 2]} for n in range(60)]
    recipe = write_recipe(tmp_path, tiny_dir, changes)
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    api.data(api.open_run(recipe, tmp_path / "run"))
    said = talk()
    assert "no test row has the label mauve: " in said and "the label red" not in said


def test_events_say_every_figure_of_the_table_and_the_scores_and_verdict_of_the_records(tiny_run):
    """Bars, pages and trackers read events alone, so what they show is what the records of the run hold."""
    events = read_events(tiny_run.events_file)
    metrics = [event for event in events if isinstance(event, Metric) and event.stage == "train"]
    assert all(event.figures["seconds"] > 0 for event in metrics)
    shown = [
        {"step": event.step} | {name: value for name, value in event.figures.items() if name != "seconds"} for event in metrics
    ]
    assert shown == read_metrics(tiny_run.metrics_file) and len(shown) == Training.read(tiny_run.training_file).steps
    scores = {event.arm: (event.rows, event.score) for event in events if isinstance(event, ArmScore)}
    verdict = Verdict.read(tiny_run.verdict_file)
    assert scores == {arm.name: (arm.n, arm.score) for arm in verdict.arms}
    (decision,) = (event for event in events if isinstance(event, Decision))
    assert (decision.verdict, decision.exit_code, decision.reason) == (verdict.decision, verdict.exit_code, verdict.reason)
    begun = {event.stage for event in events if isinstance(event, StageStart)}
    assert begun == {event.stage for event in events if isinstance(event, StageEnd)} == set(tiny_run.stages())
    bars: dict[tuple[str, str], list[Progress]] = {}
    for event in events:
        if isinstance(event, Progress):
            bars.setdefault((event.stage, event.title), []).append(event)
    assert bars[("train", "training")][-1].done == len(shown) and all(bar[-1].is_last for bar in bars.values())
