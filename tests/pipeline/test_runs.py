"""Runs of a folder beside each other: what differs, what is the same, and what is passed over."""

import csv
import io
import shutil
from dataclasses import replace

import pytest

from tunesmith.cli.runs_text import as_csv, in_order
from tunesmith.errors import RunError
from tunesmith.pipeline.runs import compare, say_twin
from tunesmith.recipe import dump_recipe
from tunesmith.report.runs_page import write_runs_page
from tunesmith.rundir import RunDir
from tunesmith.rundir.events import EventLog
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.events import StageEnd


def _changed(recipe, **keys):
    return recipe.model_copy(update={"lora": recipe.lora.model_copy(update=keys)})


@pytest.fixture
def folder(tiny_run, tmp_path):
    """A run, the same one again, one whose recipe was edited since, one that failed, one that is torn and one that is none."""
    runs, recipe = tmp_path / "runs", tiny_run.recipe()
    for name in ("first", "again", "edited"):
        shutil.copytree(tiny_run.path, runs / name)
    (runs / "edited" / "recipe.yaml").write_text(dump_recipe(_changed(recipe, alpha=3.0)))
    failed = RunDir.create(runs / "failed", _changed(recipe, r=2))
    EventLog(failed.events_file).write(StageEnd(stage="data", outcome="failed", seconds=1.0, error="no room\nhint: make some"))
    (runs / "torn").mkdir()
    (runs / "torn" / "recipe.yaml").write_text("a: [")
    (runs / "<b>notes").mkdir()
    return runs


@pytest.mark.parametrize("end", ["!", ". Be kind.", ". x" * 40])  # another letter; the same and more
def test_two_long_values_are_told_apart_where_they_differ(tiny_run, tmp_path, end):
    recipe, text = tiny_run.recipe(), "Name the colour and the thing. " * 4
    for name, prompt in (("first", text + "Be short."), ("second", f"{text}Be short{end}")):
        RunDir.create(tmp_path / name, recipe.model_copy(update={"task": recipe.task.model_copy(update={"prompt": prompt})}))
    (changed,) = {entry.name: entry for entry in compare(tmp_path, "first").runs}["second"].changed
    before, after = changed.removeprefix("task.prompt ").split(" -> ")
    assert before != after and "short" in before and "short" in after


def test_runs_are_compared_and_what_is_none_is_named(folder, tiny_run, tmp_path):
    found = compare(folder, "first")
    entries = {entry.name: entry for entry in found.runs}
    assert {name: entry.state for name, entry in entries.items()} == {
        "first": "done",
        "again": "done",
        "edited": "outdated",
        "failed": "failed",
    }
    assert entries["failed"].why == "data: no room" and entries["failed"].same_data is None and entries["failed"].data is None
    assert entries["edited"].changed == ("lora.alpha 8 -> 3",) and entries["edited"].same_data is True
    assert entries["again"].changed == () and {entries["first"].repeats, entries["again"].repeats} == {None, "again"}
    verdict = Verdict.read(tiny_run.verdict_file)
    outcome = entries["first"].outcome
    assert (outcome.decision, outcome.gain) == (verdict.decision, verdict.comparison.gain)
    assert [arm.name for arm in outcome.arms] == [arm.name for arm in verdict.arms]
    assert {other.path: other.reason.split(":")[-1] for other in found.others}.keys() == {
        str(folder / "torn"),
        str(folder / "<b>notes"),
    }
    (first, *_) = csv.DictReader(io.StringIO(as_csv(in_order(found, "name"))))
    assert first["run"] == "again" and float(first["tuned score"]) == verdict.arm("tuned").score
    assert [entry.name for entry in in_order(found, "gain").runs][-1] == "failed"
    fewer = tuple(arm for arm in verdict.arms if arm.name in (verdict.candidate, verdict.best_prompt))
    replace(verdict, arms=fewer).write(RunDir(folder / "again").verdict_file)  # runs need not have the same arms
    write_runs_page(compare(folder, "first"), tmp_path / "runs.html")
    page = (tmp_path / "runs.html").read_text()
    assert "lora.alpha 8 -&gt; 3" in page and "<b>notes" not in page and "no room" in page and len(fewer) < len(verdict.arms)


@pytest.mark.parametrize(
    ("where", "against", "words"),
    [("none", "previous", "no such folder"), ("first", "previous", "is a run itself"), (".", "x", "no run x in it")],
)
def test_a_folder_without_what_is_asked_for_is_an_error_with_a_hint(folder, where, against, words):
    with pytest.raises(RunError, match=words) as error:
        compare(folder / where, against)
    assert error.value.hint


def test_an_experiment_that_was_made_is_said_before_it_is_made_again(folder, tiny_run, talk):
    recipe = tiny_run.recipe()
    same = recipe.model_copy(update={"name": "other", "report_to": ("tensorboard",)})
    say_twin(RunDir.create(folder / "new", same))
    decision = Verdict.read(tiny_run.verdict_file).decision
    assert f"again is this experiment already, with the same keys and rows: {decision}" in talk()
    say_twin(RunDir.create(folder / "newer", _changed(recipe, r=2)))
    say_twin(RunDir(folder / "first"))
    assert talk() == ""
