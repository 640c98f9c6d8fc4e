"""A run whose rates race, as its stage makes it."""

import shutil
from dataclasses import replace

import pytest

from tunesmith.pipeline import verbs as api
from tunesmith.recipe import dump_recipe
from tunesmith.report.page import write_report
from tunesmith.rundir import RunDir, sha256_file
from tunesmith.rundir.events import read_events
from tunesmith.rundir.records.events import Progress
from tunesmith.rundir.records.training import Spike, Training


def _set(run, **keys):
    recipe = run.recipe()
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"train": recipe.train.model_copy(update=keys)})))


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "merged", "*.gguf"))
    run = RunDir(tmp_path / "run")
    _set(run, race=True)
    return run


def test_a_run_that_raced_is_the_run_with_that_rate_and_says_how_it_was_found(run):
    assert api.status(run)["train"].why == ("train.race False -> True",)
    api.make(run, ["train"])
    training = Training.read(run.training_file)
    race = training.race
    assert race is not None and training.learning_rate == race.learning_rate
    assert min(race.entries, key=lambda entry: entry.dev_loss).learning_rate == race.learning_rate
    spike = Spike(step=3, loss=4.0, dev_loss=2.5, back_to=1, learning_rate=0.002)
    replace(training, spikes=(spike,)).write(run.training_file)
    shown = Training.read(run.training_file)._repr_html_()
    assert race.words in shown and "spike at step 3: back to step 1, at rate 2.0e-03 from there" in shown
    write_report(run)
    page = run.report_file.read_text()
    assert race.words.capitalize() in page and "training went back to step 1 and on at half the rate, 2.0e-03" in page
    titles = {event.title for event in read_events(run.events_file) if isinstance(event, Progress)}
    assert titles >= {f"race at rate {entry.learning_rate:g}" for entry in race.entries}
    raced = {name: sha256_file(run.path / name) for name in ("adapter/adapter_model.safetensors", "metrics.jsonl")}
    shutil.rmtree(run.checkpoints)
    _set(run, race=False, learning_rate=race.learning_rate)
    api.make(run, ["train"])
    assert Training.read(run.training_file).race is None
    assert {name: sha256_file(run.path / name) for name in raced} == raced
