"""Commands for a whole run: whether to make it, what it takes, all of it, and how it stands."""

import logging
from typing import Annotated

import typer

from tunesmith.cli.application import WHOLE, Lazy, app, console, print_json, show
from tunesmith.cli.options import AsJson, Out, Target

logger = logging.getLogger(__name__)
_verbs = Lazy("tunesmith.pipeline.verbs")
_plan = Lazy("tunesmith.pipeline.plan")
_plan_text = Lazy("tunesmith.cli.plan_text")
_text = Lazy("tunesmith.cli.text")
_status_text = Lazy("tunesmith.cli.status_text")


@app.command(rich_help_panel=WHOLE)
def advise(
    target: Target,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Ask no model; answer in seconds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether to tune at all, before any training. The exit code is the advice's."""
    directory = _verbs.open_run(target, out)
    result = _verbs.advise(directory, quick)
    show(result, as_json, lambda: _text.print_advice(result, console()))
    logger.info(f"advice: {directory.path / 'advice.json'}")
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=WHOLE)
def plan(
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A recipe, a run, or a model (a directory with its config.json will do)."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="That training may take, e.g. 16GB; all of the card's.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", metavar="CARD", help="A card by name; this machine's by default.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=2, help="Of a micro-batch; the recipe's train.max_length, or 2048.")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Model size by technique instead, on each --gpu; needs no target.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what memory and disk training takes, and the fastest way to fit a machine. Loads nothing. Exit code 1: none fits."""
    cards = gpu or []
    if table:
        if target is not None or memory is not None:
            raise typer.BadParameter("takes --tokens and --gpu alone", param_hint="--table")
        shown = _plan.table(tokens or 2048, cards)
        return show(shown, as_json, lambda: _plan_text.print_table(shown, console()))
    if target is None:
        raise typer.BadParameter("give a recipe, a run or a model; or --table", param_hint="TARGET")
    if len(cards) > 1:
        raise typer.BadParameter("one card for a plan; several with --table", param_hint="--gpu")
    found = _plan.plan(target, memory, cards[0] if cards else None, tokens)
    show(found, as_json, lambda: _plan_text.print_plan(found, console()))
    raise typer.Exit(0 if found.fits else 1)


@app.command(rich_help_panel=WHOLE)
def run(
    target: Target,
    out: Out = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take over a directory that is another recipe's run.")] = False,
    until: Annotated[str, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = "report",
    force: Annotated[
        list[str] | None, typer.Option("--force", metavar="STAGE", help="Make it again though it is done; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and why; make nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdict as JSON; before there is one, how the stages stand.")
    ] = False,
) -> None:
    """All stages, from data to verdict and report. The exit code is the verdict's."""
    if dry_run:
        stages = _verbs.dry_run(_verbs.look_at(target, out, replace=replace))
        return show(stages, as_json, lambda: _status_text.print_status(stages, console()))
    directory = _verbs.open_run(target, out, replace=replace)
    result = _verbs.run(directory, until=until, force=force or ())
    if result is None:
        return print_json(_verbs.status(directory)) if as_json else None
    show(result, as_json, lambda: _text.print_verdict(result, console()))
    if not as_json:
        _status_text.print_times(directory.stages(), console())
    logger.info(f"report: {directory.report_file}")
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=WHOLE)
def status(target: Target, as_json: AsJson = False) -> None:
    """Say which stages are done, which are not and why, and how long they took. Writes nothing."""
    stages = _verbs.status(_verbs.look_at(target))
    show(stages, as_json, lambda: _status_text.print_status(stages, console()))
