"""Constrained answers as a part of the prompt search, on the tiny run."""

import dataclasses
import json
import logging
import shutil
import sys

import pytest

from shared import COLOURS
from tunesmith.engines.open import answer_language
from tunesmith.errors import RecipeError
from tunesmith.evaluate.arms import read_outputs
from tunesmith.pipeline import report, verdict
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.evaluation import ROOM, Evaluation
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import dump_recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.evaluation import Selection, Verdict


def _selection(tiny_run, folder, constrained):
    shutil.copytree(tiny_run.path, folder)
    run = RunDir(folder)
    recipe = run.recipe()
    task = recipe.task.model_copy(update={"constrained": constrained, "prompt": "Say it."})
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"task": task})))
    api.make(run, ["select"])
    return run, Selection.read(run.evaluation / "selection.json")


@pytest.mark.parametrize(("constrained", "ways"), [("auto", {"", "schema"}), (True, {"schema"}), (False, {""})])
def test_which_ways_are_tried_and_what_binds_an_arm(tiny_run, tmp_path, constrained, ways):
    run, selection = _selection(tiny_run, tmp_path / "run", constrained)
    assert {trial.candidate.held_to for trial in selection.candidates} == ways
    recipe = run.recipe()
    language = answer_language(recipe.task)
    assert language is not None
    evaluation = Evaluation.of(run, recipe)
    for held_to in ways:
        chosen = dataclasses.replace(selection.candidates[0].candidate, held_to=held_to)
        for arm in ("few_shot", "prompt_deployed"):
            assert evaluation.allowed_of(arm, {arm: chosen}) == (language if held_to else None)
    assert evaluation.allowed_of("tuned", {}) == (language if constrained is True else None)


def test_without_the_extra_the_search_says_so_once_and_goes_on(tiny_run, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with caplog.at_level(logging.WARNING):
        _, selection = _selection(tiny_run, tmp_path / "run", "auto")
    assert {trial.candidate.held_to for trial in selection.candidates} == {""}
    (line,) = [r.getMessage() for r in caplog.records if "held to the schema" in r.getMessage()]
    assert "llguidance" in line and "tunesmith[constrained]" in line


def test_true_needs_something_to_hold_answers_to(make_recipe):
    with pytest.raises(RecipeError, match="constrained needs task"):
        make_recipe({"task.json_schema": None, "task.constrained": True})
    assert make_recipe({"task.json_schema": None}).task.held_to == ("",)


@pytest.mark.parametrize(
    ("task", "room"), [({"max_new_tokens": None}, ROOM), ({}, 0), ({"max_new_tokens": None, "metric": "exact_match"}, 0)]
)
def test_prompts_have_room_to_reason_where_the_metric_finds_the_answer(tiny_run, task, room):
    recipe = tiny_run.recipe()
    evaluation = dataclasses.replace(
        Evaluation.of(tiny_run, recipe), recipe=recipe.model_copy(update={"task": recipe.task.model_copy(update=task)})
    )
    tuned = evaluation.budget_of("deployed")
    assert tuned == evaluation.budget_of("tuned_retrieval") == Rendered.read(tiny_run.rendered_file).max_new_tokens
    for arm in ("few_shot", "few_shot:2", "prompt_deployed", "external:big"):
        assert evaluation.budget_of(arm) == tuned + room


def test_a_prompt_held_to_the_schema_is_the_one_to_beat_on_page_and_in_verdict(tiny_run, tmp_path):
    """Random weights write no JSON; held to the schema's few words they are right now and then, and that prompt wins dev."""
    shutil.copytree(tiny_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "*.gguf", "merged"))
    run = RunDir(tmp_path / "run")
    recipe = run.recipe()
    properties = {"colour": {"enum": COLOURS}}
    schema = {"type": "object", "properties": properties, "required": ["colour"], "additionalProperties": False}
    (tmp_path / "words.json").write_text(json.dumps(schema))
    changes = {"json_schema": tmp_path / "words.json", "prompt": "Say it.", "max_new_tokens": 32}
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"task": recipe.task.model_copy(update=changes)})))
    api.make(run, ["render", "select", "evaluate instruction", "evaluate few_shot", "evaluate finalists"])
    selection = Selection.read(run.evaluation / "selection.json")
    leader = selection.finalists[0]
    assert selection.arms[leader].held_to == "schema"
    answers = [output.output for output in read_outputs(run.answers(leader)) if output.finished]
    assert answers and all(json.loads(answer)["colour"] in COLOURS for answer in answers)
    for module in (verdict, report):
        module.execute(run, run.recipe(), Session(), "")
    way = selection.way_of(leader)
    assert way.endswith("answers held to the schema)") and way in run.report_file.read_text()
    assert way in [rival.way for rival in Verdict.read(run.verdict_file).rivals]
