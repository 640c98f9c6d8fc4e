"""Commands that show a run to others, and runs beside each other."""

import logging
from typing import Annotated, Literal

import typer

from tunesmith.cli.application import SHARE, Lazy, app, show
from tunesmith.cli.options import AsJson, Target

logger = logging.getLogger(__name__)
_verbs = Lazy("tunesmith.pipeline.verbs")
_track = Lazy("tunesmith.pipeline.track")


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
