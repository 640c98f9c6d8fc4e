"""What is done with rows in a process of its own, here in this one: the run that a check makes, an estimate, a preview."""

import json
import re

import pytest
from jobs_server import write_settings

from shared import toy_rows
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.serve.jobs import tasks
from tunesmith.serve.jobs.hyperparameters import job_request
from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.queue import NewJob, Queue
from tunesmith.serve.jobs.recipes import Wanted
from tunesmith.serve.jobs.store import StoredFile

RECIPE = {
    "base": "fp32",
    "data": {"test_fraction": 0.25, "dev_fraction": 0.2},
    "lora": {"r": 4, "alpha": 8},
    "train": {"max_length": 128, "replay": 0.0},
    "evaluate": {"price_per_hour": 2.0},
}


@pytest.fixture
def place(tmp_path, tiny_dir):
    place = Place(write_settings(tmp_path / "jobs", models={"tiny": str(tiny_dir)}, recipe=RECIPE))
    place.store.create()
    place.files.mkdir()
    return place


def add_file(place, name, rows):
    """A file of lines; its record."""
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (place.files / f"{name}.jsonl").write_text(text)
    facts = {
        "bytes": len(text),
        "created_at": 1.0,
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "sha256": name,
        "expires_at": None,
    }
    return place.store.add_file(StoredFile(number=0, id=name, owner="local", place=f"{name}.jsonl", **facts))


def add_job(place, rows=None, test=None, **body):
    """A job of some rows, as a request makes it."""
    asked = job_request({"model": "tiny", "training_file": "file-a", **body})
    training = add_file(place, "file-a", rows or toy_rows())
    validation = None if test is None else add_file(place, "file-b", test)
    place.link_rows("ftjob-1", training, validation)
    return Queue(place.store, place.settings()).create(
        NewJob(
            id="ftjob-1",
            owner="local",
            model="tiny",
            training_file="file-a",
            validation_file=None if test is None else "file-b",
            suffix=None,
            seed=3,
            metadata=asked.metadata,
            hyperparameters=asked.asked.model_dump(),
            options=asked.options.model_dump(exclude_none=True),
            body_hash="",
            idempotency_key=None,
            is_retry=False,
        )
    )


def test_a_check_makes_the_run_that_was_asked_for(place):
    hyper = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 2.0}
    options = {"min_gain": 0.1, "prompt": "Colour and thing."}
    job = add_job(place, method={"type": "supervised", "supervised": {"hyperparameters": hyper}}, tunesmith=options)
    said = tasks.check(place, job)["said"]
    recipe = place.run(job.id).recipe()
    assert (recipe.name, recipe.seed, recipe.base, recipe.lora.r) == ("ftjob-1", 3, "fp32", 4)
    assert recipe.task.metric == "json", "told from the rows"
    assert recipe.task.min_gain == 0.1 and recipe.task.prompt == "Colour and thing."
    assert recipe.train.num_train_epochs == 2
    rendered = json.loads((place.run(job.id).data / "rendered.json").read_text())
    assert recipe.train.tokens_per_step == round(8 * rendered["train_tokens"] / 37)
    half = next(line for line in said if line.startswith("learning_rate_multiplier"))
    assert half == f"learning_rate_multiplier 2: {recipe.train.learning_rate:g}, 2 x {recipe.train.learning_rate / 2:g}"
    assert "37 train, 9 dev and 18 test rows" in said[0] and "18 sealed rows, drawn from the training file" in said[1]
    assert tasks.check(place, job)["said"][:2] == said[:2], "a check that is done again finds what is there"


def test_a_validation_file_is_the_sealed_test_part(place):
    job = add_job(place, rows=toy_rows()[:40], test=toy_rows()[40:], metadata={"metric": "exact_match"})
    said = tasks.check(place, job)["said"]
    split = json.loads(place.run(job.id).split_file.read_text())
    assert len(split["parts"]["test"]) == 24 and len(split["parts"]["dev"]) > 0
    assert "24 sealed rows, the validation file file-b; the metric is exact_match" in said[1]


def asks(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.mark.parametrize(
    ("rows", "body", "kind", "message"),
    [
        ([*toy_rows()[:6], asks(("user", "a"), ("assistant", 5))], {}, DataError, r"line 7.*\$\.messages\[1\]\.content"),
        ([*toy_rows()[:6], "{"], {}, DataError, "line 7"),
        ([{"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}] * 20, {}, DataError, "file-a"),
        (toy_rows()[:3], {}, DataError, "rows"),
        (toy_rows(), {"metadata": {"metric": "python"}}, RecipeError, r"needs task\.function"),
        (toy_rows(), {"tunesmith": {"metric": "json", "labels": ["a", "b"]}}, RecipeError, "labels is read by"),
    ],
    ids=["a number", "torn", "preferences", "too few", "a metric that needs a file", "labels"],
)
def test_what_cannot_be_tuned_is_said(place, rows, body, kind, message):
    job = add_job(place, rows=rows, **body)
    with pytest.raises(kind) as caught:
        tasks.check(place, job)
    text = place.plain(str(tasks.error_of(caught.value)["message"]), job)
    assert re.search(message, text, re.DOTALL) and str(place.directory) not in text, text
    assert "tunesmith schema" not in text and ("data.on_bad_row" not in text or "jobs.yaml" in text)


def test_what_a_job_would_take(place):
    file = add_file(place, "file-a", toy_rows())
    found = tasks.estimate(place, Wanted(name="estimate", model="tiny", file=file.place, hyperparameters={"n_epochs": 3}))
    assert (found["rows"], found["train_rows"], found["n_epochs"]) == (64, 35, 3)
    assert found["memory"]["fits"] and found["estimated_train_token_count"] > 3 * 35 * 10
    assert found["estimated_total_price"] == pytest.approx(2.0 * found["estimated_hours"])
    with pytest.raises(ModelError, match="no such base model any more"):
        tasks.estimate(place, Wanted(name="estimate", model="gone", file=file.place))


def test_rows_as_they_would_be_trained(place):
    file = add_file(place, "file-a", toy_rows())
    found = tasks.preview(place, Wanted(name="preview", model="tiny", file=file.place, rows=2))
    pieces = found["data"][0]["documents"][0]["pieces"]
    assert len(found["data"]) == 2
    assert "".join(piece["text"] for piece in pieces if piece["supervised"]).startswith('{"colour": "red", "thing": "car"}')
