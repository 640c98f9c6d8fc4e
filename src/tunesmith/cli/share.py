"""Commands that show a run to others, and runs beside each other."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from tunesmith.cli.application import SHARE, Lazy, app, console, show
from tunesmith.cli.options import AsJson, Target

logger = logging.getLogger(__name__)
_verbs = Lazy("tunesmith.pipeline.verbs")
_track = Lazy("tunesmith.pipeline.track")
_runs = Lazy("tunesmith.pipeline.runs")
_runs_text = Lazy("tunesmith.cli.runs_text")
_runs_page = Lazy("tunesmith.report.runs_page")


@app.command(rich_help_panel=SHARE)
def track(
    target: Target,
    to: Annotated[
        Literal["tensorboard", "wandb", "mlflow", "trackio"],
        typer.Option("--to", help="The tracker; each is an extra of the same name."),
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends, or Ctrl-C.")] = False,
    project: Annotated[
        str | None,
        typer.Option(
            "--project", help="Where it is filed (MLflow: experiment); what the tracker's variable says, or tunesmith."
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Send report.html too, which shows rows of your data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a run's steps, arms and verdict to TensorBoard, W&B, MLflow or trackio. What is there is not sent twice."""
    if project is not None and to == "tensorboard":
        raise typer.BadParameter(
            "tensorboard has no projects; it shows the directories below its --logdir", param_hint="--project"
        )
    sent = _track.track(_verbs.look_at(target), to, project=project, report=report, follow=follow)
    show(sent, as_json)
    if sent is None:
        return logger.info(f"{to}: no step was trained, so nothing was sent")
    earlier = f" ({sent.earlier:,} were there)" if sent.earlier else ""
    verdict = "no verdict yet" if sent.verdict is None else f"verdict: {sent.verdict}"
    logger.info(f"{to}: {sent.steps:,} steps sent{earlier}, {verdict}; {sent.place}")
    logger.info(f"to look at it: {sent.look}")


@app.command(rich_help_panel=SHARE)
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="That holds run directories.")] = Path("runs"),
    against: Annotated[
        str, typer.Option("--against", metavar="RUN", help="What keys and rows are compared with: a run, or the one before.")
    ] = "previous",
    sort: Annotated[
        Literal["began", "name", "gain", "score", "seconds", "verdict"],
        typer.Option("--sort", help="By when it began, oldest first; gain, score and seconds: the largest first."),
    ] = "began",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a line a run as CSV, with every arm's score.")] = False,
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Also write a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Runs beside each other: verdict, scores, which keys differ, whether the rows are the same. Writes nothing into them."""
    if as_csv and as_json:
        raise typer.BadParameter("one of --csv and --json", param_hint="--csv")
    found = _runs_text.in_order(_runs.compare(folder, against), sort)
    if as_csv:
        print(_runs_text.as_csv(found), end="")
    else:
        show(found, as_json, lambda: _runs_text.print_runs(found, console()))
    for other in found.others:
        logger.warning(f"passed over: {other.path}: {other.reason}")
    if page is not None:
        _runs_page.write_runs_page(found, page)
        logger.info(f"page: {page}")
