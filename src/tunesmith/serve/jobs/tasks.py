"""What is done with other people's rows in a process of its own: check a job's files, estimate a job, preview rows.

A file may be anything, so nothing but a child reads it: whatever it does to the parser, the server answers on. The answer is
one line of JSON on stdout: ``{"ok": ...}`` or ``{"error": {code, message, param}}``.

Checking a job makes its run as far as the stage ``render``: the rows are read and checked, split and rendered, as the run
itself would do it, and what is finished of it the run need not do again.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import yaml
from pydantic import JsonValue

from tunesmith.data.read import Reader
from tunesmith.engines.base import open_base
from tunesmith.errors import DataError, ModelError, RecipeError, TunesmithError
from tunesmith.formatting import whole_characters
from tunesmith.hardware import grow_gpu_segments
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.pipeline import verbs
from tunesmith.pipeline.check_tokens import Tokens
from tunesmith.pipeline.init import draft
from tunesmith.pipeline.plan import plan
from tunesmith.pipeline.preview import preview as preview_rows
from tunesmith.recipe import Recipe, dump_recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.base import Json
from tunesmith.rundir.records.check import DataReport
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.plan import PlanReport
from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.recipes import Counted, Wanted, metric_of, read_options, recipe_of, same_recipe, with_numbers
from tunesmith.serve.jobs.settings import JobsSettings
from tunesmith.serve.jobs.store import Job

COUNTED = 2000  # rows whose tokens an estimate counts
KEY = re.compile(r"\b(data|task|train|evaluate|export|chat)\.[a-z_]+|--[a-z]")
CODES: tuple[tuple[type[TunesmithError], str, str | None], ...] = (
    (DataError, "invalid_training_file", "training_file"),
    (RecipeError, "invalid_recipe", None),
    (ModelError, "model_error", "model"),
    (TunesmithError, "setup_failed", None),
)


def answer(task: Callable[[], Json]) -> int:
    """Do a task and print its answer; the exit code."""
    try:
        result: Json = {"ok": task()}
    except TunesmithError as error:
        result = {"error": error_of(error)}
    print(json.dumps(json.loads(whole_characters(json.dumps(result, ensure_ascii=False)))))
    return 0


def error_of(error: TunesmithError) -> Json:
    """An error of ours as the error of a job: its hint says what to type, which is the operator's where it is a key."""
    code, param = next((code, param) for kind, code, param in CODES if isinstance(error, kind))
    hint = "" if "tunesmith schema" in error.hint else error.hint
    if KEY.search(hint):
        hint += " (the operator sets keys and options, in jobs.yaml under recipe)"
    return {"code": code, "message": f"{error.message}\nhint: {hint}" if hint else error.message, "param": param}


def check(place: Place, job: Job) -> Json:
    """Make the run of a job, up to its rendered rows; ``{"said": [...]}``.

    Raises:
        DataError: the rows are wrong.
        TunesmithError: something else keeps the job from being run.
    """
    settings = place.settings()
    run = _make_run(place, settings, job)
    verbs.dry_run(run)
    verbs.make(run, ["render"], all_needed=True)
    recipe, rendered, report = run.recipe(), Rendered.read(run.data / "rendered.json"), DataReport.read(run.data_report_file)
    rows = report.trained or report.train
    counted = Counted(rows, rendered.train_tokens, rendered.supervised_tokens)
    changed, derived, said = with_numbers(recipe, job.hyperparameters, counted, _width(recipe))
    if not same_recipe(changed, recipe):
        RunDir.create(run.path, changed, replace=True)
    split = "drawn from the training file" if job.validation_file is None else f"the validation file {job.validation_file}"
    said = [
        f"Files validated, moving job to queued state: {rows:,} train, {report.dev:,} dev and {report.test:,} test rows",
        f"The verdict is of {report.test:,} sealed rows, {split}; the metric is {recipe.task.metric}",
        *said,
        *derived.lines,
    ]
    return {"said": [*said]}


def _make_run(place: Place, settings: JobsSettings, job: Job) -> RunDir:
    """The run directory of a job, as its last check left it where there was one."""
    run = place.run(job.id)
    if run.recipe_file.exists():
        return run
    wanted = Wanted(name=job.id, model=job.model, seed=job.seed, hyperparameters=job.hyperparameters, options=job.options)
    return RunDir.create(run.path, _recipe(place, settings, wanted, place.rows_of(job)))


def _recipe(place: Place, settings: JobsSettings, wanted: Wanted, rows: Path) -> Recipe:
    if wanted.model not in settings.models:
        raise ModelError(f"{wanted.model}: no such base model any more", f"there are: {', '.join(settings.models)}")
    model = settings.models[wanted.model]
    where = place.directory / "recipe.yaml"  # where it would lie; nothing is written there
    text, _ = draft(str(rows), model, read_options(settings), where, metric_of(settings, wanted.options))
    return recipe_of(
        cast(Json, yaml.safe_load(text)),
        settings,
        directory=place.directory,
        name=wanted.name,
        model=model,
        rows=rows,
        seed=wanted.seed,
        asked=wanted.hyperparameters,
        options=wanted.options,
    )


def _width(recipe: Recipe) -> int:
    """Width of a recipe's model.

    Raises:
        ModelError: its configuration does not say.
    """
    shape = read_shape(open_base(recipe).directory)
    if not isinstance(shape, Shape):
        raise ModelError(f"{recipe.model}: has no usable number for {shape}", "name another base model")
    return shape.hidden


def estimate(place: Place, wanted: Wanted) -> Json:
    """Tokens, steps, memory, hours and price of a job that is not there yet."""
    settings = place.settings()
    rows = place.files / wanted.file
    recipe = _recipe(place, settings, wanted, rows)
    count, counted = _tokens(rows, settings, recipe)
    held_out = recipe.data.dev_fraction + (0.0 if wanted.brings_test else recipe.data.test_fraction)
    trained = max(1, round(count * (1.0 - held_out)))
    share, mean = trained / counted.rows, counted.tokens / counted.rows
    of_training = Counted(trained, round(share * counted.tokens), round(share * counted.supervised))
    recipe, derived, said = with_numbers(recipe, wanted.hyperparameters, of_training, _width(recipe))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8", newline="\n")
        planned = plan(str(file))
    epochs = derived.settings.num_train_epochs
    total = round(trained * mean * epochs)
    hours = None if not planned.tokens_per_second else total / planned.tokens_per_second / 3600.0
    if counted.rows < count:
        said.append(f"tokens were counted on the first {counted.rows:,} of {count:,} rows")
    said.append("hours and price are of the training; the arms, the export and the verdict come on top")
    return {
        "object": "fine_tuning.estimate",
        "estimation_available": True,
        "estimated_train_token_count": total,
        "rows": count,
        "train_rows": trained,
        "n_epochs": epochs,
        "steps": derived.steps,
        "learning_rate": derived.settings.learning_rate,
        "memory": {"fits": planned.fits, "needs_bytes": planned.needs_bytes, "has_bytes": planned.place.budget_bytes},
        "tokens_per_second": planned.tokens_per_second,
        "estimated_hours": hours,
        "estimated_total_price": _price(recipe, planned, total, hours),
        "notes": [*said, *derived.lines],
    }


def _price(recipe: Recipe, planned: PlanReport, tokens: int, hours: float | None) -> float | None:
    """By the operator's price of an hour, else by that of renting the card; None where neither is known."""
    if recipe.evaluate.price_per_hour is not None and hours is not None:
        return recipe.evaluate.price_per_hour * hours
    by_card = planned.dollars_per_million_tokens
    return None if by_card is None else by_card * tokens / 1e6


def _tokens(path: Path, settings: JobsSettings, recipe: Recipe) -> tuple[int, Counted]:
    """Rows of a file, and what the first of them amount to."""
    reader = Reader(path, read_options(settings))
    counter = Tokens(open_base(recipe), recipe.model, recipe.train.max_length)
    count, sizes = 0, list[tuple[int, int]]()
    for batch in reader.batches():
        count += len(batch)
        if len(sizes) < COUNTED:
            sizes += counter.sizes_of(batch[: COUNTED - len(sizes)])
    if not sizes:
        raise DataError(f"{path}: no row can be rendered with the model's template", "look at them with the preview")
    tokens, supervised = zip(*sizes, strict=True)
    return count, Counted(len(sizes), sum(tokens), sum(supervised))


def preview(place: Place, wanted: Wanted) -> Json:
    """The first rows as the model's template writes them.

    Raises:
        DataError: a row is wrong.
    """
    settings = place.settings()
    path, options = place.files / wanted.file, read_options(settings)
    shown = preview_rows(path, settings.models[wanted.model], options, rows=wanted.rows)
    entries: list[JsonValue] = []
    for row in shown:
        error = None if row.error is None else error_of(row.error)["message"]
        documents: list[JsonValue] = [
            {
                "tokens": document.tokens,
                "supervised_tokens": document.supervised,
                "pieces": [
                    {"text": piece.text, "supervised": piece.supervised, "control": piece.control, "ids": [*piece.ids]}
                    for piece in document.pieces
                ],
            }
            for document in row.documents
        ]
        entries.append({"id": row.id, "place": row.place, "documents": documents, "notes": [*row.notes], "error": error})
    return {"object": "fine_tuning.preview", "model": wanted.model, "data": entries, "notes": [*shown.lines]}


def main(arguments: list[str]) -> int:
    """``check DIR JOB``, or ``estimate DIR`` and ``preview DIR`` with what is wanted as JSON on standard input."""
    grow_gpu_segments()
    verb, place = arguments[0], Place(Path(arguments[1]))
    if verb == "check":
        job = place.store.job(None, arguments[2])
        assert job is not None, f"no job {arguments[2]}"
        return answer(lambda: check(place, job))
    wanted = Wanted(**json.load(sys.stdin))
    return answer(lambda: estimate(place, wanted) if verb == "estimate" else preview(place, wanted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
