"""Commands that a verdict can do without: more seeds, a curve over data, a race of bases."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from tunesmith.cli.application import EVIDENCE, Lazy, app, console, show
from tunesmith.cli.options import AsJson, Out, Target

if TYPE_CHECKING:
    from tunesmith.rundir.records.race import BaseRace

_verbs = Lazy("tunesmith.pipeline.verbs")
_text = Lazy("tunesmith.cli.text")
_race = Lazy("tunesmith.rundir.records.race")


@app.command(rich_help_panel=EVIDENCE)
def seeds(target: Target, as_json: AsJson = False) -> None:
    """Train and score the adapters of evaluate.seeds."""
    adapters = _verbs.seeds(_verbs.open_run(target))
    show(adapters, as_json)


@app.command("learning-curve", rich_help_panel=EVIDENCE)
def learning_curve(target: Target, as_json: AsJson = False) -> None:
    """Train on shares of the train part and say what more data would buy."""
    curve = _verbs.learning_curve(_verbs.open_run(target))
    show(curve, as_json)


@app.command(rich_help_panel=EVIDENCE)
def race(
    target: Target,
    model: Annotated[list[str], typer.Option("--model", help="Hub id, directory or .gguf file; two or more.")],
    out: Out = None,
    rows: Annotated[int, typer.Option("--rows", min=10, help="Of train and of dev at most, for each model.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Try base models on a few rows each: score with the best prompt and tuned, memory, speed. Reads no test row."""
    models = _verbs.entrants(model)
    found = _verbs.race(_verbs.open_run(target, out), models, rows)
    show(found, as_json, lambda: _print_race(found))


def _print_race(found: "BaseRace") -> None:
    title = f"{found.metric} on {found.dev_rows} dev rows, trained on {found.train_rows}; gains against the first"
    table = Table(*_race.RACE_COLUMNS, title=title, **_text.COMPACT)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for entry in found.models:
        if entry.why_not is None:
            table.add_row(*(Text(cell) for cell in entry.cells))
    screen = console()
    screen.print(table)
    for entry in found.models:
        if entry.why_not is not None:
            screen.print(Text(f"{entry.model} is out: {entry.why_not}"), soft_wrap=True)
    screen.print("prompt: the best one, untrained; GB and tok/s: of the training; ms: of an answer of the tuned model")
    screen.print(Text(found.reason), soft_wrap=True)
