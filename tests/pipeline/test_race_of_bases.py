"""A race of base models: the same few rows for each, one that cannot is named, and a second call goes on."""

import json
import shutil

import pytest

from shared import write_recipe
from tunesmith.errors import ModelError, RunError
from tunesmith.pipeline import verbs
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.race import BaseRace


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dir):
    """A run of which nothing is done, with two models beside it: the tiny one, and one of another base without a template."""
    directory = tmp_path_factory.mktemp("race")
    other = directory / "other"
    shutil.copytree(tiny_dir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    (other / "chat_template.jinja").unlink()  # so it gets the recipe's
    changes = {
        "chat.template": "chatml",
        "evaluate.few_shot": {"k": [1], "draws": 1, "selection": ["random"]},
        "train.num_train_epochs": 1,
    }
    return verbs.open_run(write_recipe(directory, tiny_dir, changes), directory / "run")


def test_models_are_tried_on_the_same_rows_and_one_that_cannot_is_named(run, tiny_dir, talk):
    places = [str(tiny_dir), str(run.path.parent / "other"), str(run.path.parent / "none")]
    found = verbs.race(run, verbs.entrants(places), 10)
    assert found == BaseRace.read(run.path / "race" / "race.json")
    first, second, out = found.models
    assert {first.model, second.model} == set(places[:2]) and out.model == places[2] and "no such model" in out.why_not
    assert first.against is None and second.against.n == found.dev_rows == 10 and found.train_rows == 10
    assert first.tuned.score >= second.tuned.score and first.model in found.reason
    for entry in (first, second):
        assert entry.memory > 0 and entry.tokens_per_second > 0 and entry.answer_ms > 0
    inner = [RunDir(path.parent) for path in sorted(run.path.glob("race/*/training.json"))]
    assert len(inner) == 2
    rows = [[row.id for row in read_rows(one.data / "train.jsonl")] for one in inner]
    assert rows[0] == rows[1] and set(rows[0]) <= {row.id for row in read_rows(run.data / "train.jsonl")}
    assert not [row for one in inner for row in read_rows(one.data / "test.jsonl")] and not run.readings.exists()
    stages = [one.stages() for one in inner]
    talk()
    again = verbs.race(run, verbs.entrants(places[:2]), 10)
    assert again.models == found.models[:2] and [one.stages() for one in inner] == stages
    assert "train: up to date" in talk()


@pytest.mark.parametrize(
    ("models", "words"),
    [(["a/b"], "one model alone"), (["a/b", "c/d", "a/b"], "named twice"), (["./x.gguf", "x.gguf"], "twice")],
)
def test_what_is_no_race_is_refused(models, words):
    with pytest.raises(RunError, match=words):
        verbs.entrants(models)


def test_a_race_that_nobody_ends_is_an_error_with_every_reason(run):
    places = [str(run.path.parent / name) for name in ("none", "nobody")]
    with pytest.raises(RunError, match=r"no model of the race went all the way: .*none.*nobody"):
        verbs.race(run, verbs.entrants(places), 10)


def test_a_race_of_several_processes_ends_with_a_model_that_cannot_be_tried(run, tiny_dir, monkeypatch):
    """The processes that follow are where it failed, so no other model could be tried with them."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match="no such model"):
        verbs.race(run, verbs.entrants([str(run.path.parent / "none"), str(tiny_dir)]), 10)
