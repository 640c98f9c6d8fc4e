"""Commands that show a run to others, hold runs beside each other, prove a run and publish it."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.filesize import decimal

from tunesmith.cli.application import SHARE, Lazy, app, console, show
from tunesmith.cli.options import AsJson, Target
from tunesmith.errors import PushError

if TYPE_CHECKING:
    from tunesmith.rundir.records.provenance import Verification
    from tunesmith.rundir.records.push import Push

logger = logging.getLogger(__name__)
_verbs = Lazy("tunesmith.pipeline.verbs")
_provenance = Lazy("tunesmith.pipeline.provenance")
_push = Lazy("tunesmith.pipeline.push")
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


@app.command(rich_help_panel=SHARE)
def verify(target: Target, as_json: AsJson = False) -> None:
    """Hash every file that the verdict speaks of, and say which is another one, gone or not named. Writes nothing."""
    found = _provenance.verify(_verbs.look_at(target))
    show(found, as_json, lambda: _print_verification(found))
    _provenance.refuse_altered(found)


def _print_verification(found: "Verification") -> None:
    kinds = (
        ("another one", found.differs),
        ("gone", found.gone),
        ("not named", found.unnamed),
        ("not on this machine", found.elsewhere),
    )
    for kind, names in kinds:
        for name in names:
            print(f"{kind:<20} {name}")
    print(f"{found.same} files ({decimal(found.bytes)}) are what the verdict ({found.decision}) names")
    print(f"verdict.json: sha256 {found.verdict_sha256}")


@app.command(rich_help_panel=SHARE)
def push(
    target: Target,
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="Repository on the hub; made where there is none.")],
    form: Annotated[Literal["adapter", "merged", "gguf"], typer.Option("--form", help="What is published.")] = "adapter",
    private: Annotated[bool, typer.Option("--private", help="Seen by its owner alone; else anybody sees it.")] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="OWNER/NAME", help="Hub id of the base, where the recipe names a path.")
    ] = None,
    base_license: Annotated[
        str | None, typer.Option("--base-license", help="Of the base, where its own card says none; e.g. apache-2.0.")
    ] = None,
    data_license: Annotated[str | None, typer.Option("--data-license", help="Of the rows.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Rows of dev to show on the card; none by default.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, with the card; send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish the adapter, the merged model or its GGUFs on the Hugging Face hub, with the verdict on the card."""
    run = _verbs.look_at(target)
    planned = _push.plan(
        run,
        to,
        form,
        private=private,
        base=base,
        base_license=base_license,
        data_license=data_license,
        examples=examples,
    )
    for note in planned.notes:
        logger.warning(f"push: {note}")
    if dry_run:
        return show(planned, as_json, lambda: _print_push(planned))
    _confirm(planned, yes)
    sent = _push.publish(run, planned)
    show(sent, as_json, lambda: print(sent.url))


def _print_push(planned: "Push") -> None:
    for file in planned.files:
        print(f"{file.name:<40} {decimal(file.bytes):>10}  {file.sha256[:12]}")
    print(f"{len(planned.files)} files, {decimal(planned.bytes)}, to {planned.to}; README.md:\n\n{planned.card}", end="")


def _confirm(planned: "Push", yes: bool) -> None:
    """Ask whoever sits there; a script has to say it.

    Raises:
        PushError: nobody is there to ask, or the answer is no.
    """
    seen = "private" if planned.private else "public: anybody can read it"
    if yes:
        return
    if not sys.stdin.isatty():
        raise PushError(
            "a push publishes, and nobody is here to confirm it",
            "add --yes where you mean it; --dry-run shows what would be sent",
        )
    files = f"{len(planned.files)} files, {decimal(planned.bytes)}"
    if not typer.confirm(f"publish the {planned.form} ({files}) to {planned.to}, {seen}?", err=True):
        raise PushError("nothing was sent", "--dry-run shows what would be")
