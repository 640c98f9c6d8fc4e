"""A command for each stage of a run."""

import json
from typing import Annotated

import typer

from tunesmith.cli.application import STAGES, Lazy, app, console, show
from tunesmith.cli.options import AsJson, Out, Target

_verbs = Lazy("tunesmith.pipeline.verbs")
_stage = Lazy("tunesmith.pipeline.stage")
_text = Lazy("tunesmith.cli.text")
_export_text = Lazy("tunesmith.cli.export_text")


@app.command(rich_help_panel=STAGES)
def data(target: Target, out: Out = None) -> None:
    """Read, check and split the rows."""
    _verbs.data(_verbs.open_run(target, out))


@app.command(rich_help_panel=STAGES)
def render(target: Target, out: Out = None) -> None:
    """Render the rows with the model's chat template and mark what is supervised."""
    _verbs.render(_verbs.open_run(target, out))


@app.command(rich_help_panel=STAGES)
def train(target: Target, out: Out = None, as_json: AsJson = False) -> None:
    """Train the adapter."""
    training = _verbs.train(_verbs.open_run(target, out))
    show(training, as_json)


@app.command(rich_help_panel=STAGES)
def export(
    target: Target,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and how large; needs no training.")
    ] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Then score several GGUF types on dev, and recommend one.")] = False,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="With --sweep: score this type; may be repeated. Nine by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written, the plan or the scores as JSON.")] = False,
) -> None:
    """Write the forms that are deployed: merged, GGUF, what Ollama, llama.cpp and vLLM need. All of them or none."""
    if types and not sweep:
        raise typer.BadParameter("is read with --sweep; the recipe's export.gguf says what is written", param_hint="--type")
    if dry_run:
        plan = _stage.module_of("export").plan(_verbs.look_at(target, out))
        return show(plan, as_json, lambda: print("\n".join(_export_text.plan_lines(plan))))
    directory = _verbs.open_run(target, out)
    if sweep:
        scores = _verbs.sweep(directory, tuple(types or ()))
        return show(scores, as_json, lambda: print("\n".join(_export_text.sweep_lines(scores))))
    show(_verbs.export(directory), as_json)


@app.command(rich_help_panel=STAGES)
def parity(target: Target, as_json: AsJson = False) -> None:
    """Prove that every exported form is the model that was trained. Exit code 14 when one is not, 12 when that is not known."""
    result = _verbs.parity(_verbs.open_run(target))
    show(result, as_json, lambda: _export_text.print_parity(result, console()))
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=STAGES)
def evaluate(
    target: Target,
    out: Out = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Score this arm only; may be repeated.")] = None,
) -> None:
    """Score the arms on the sealed test part."""
    _verbs.evaluate(_verbs.open_run(target, out), tuple(arm) if arm else None)


@app.command(rich_help_panel=STAGES)
def forgetting(target: Target, as_json: AsJson = False) -> None:
    """Measure what the tuned model has forgotten, against its base."""
    losses = _verbs.forgetting(_verbs.open_run(target))
    for arm, lost in losses.items():
        if as_json and len(losses) > 1:
            print(json.dumps({"arm": arm, **lost.to_json()}, ensure_ascii=False))
        else:
            show(lost, as_json)


@app.command(rich_help_panel=STAGES)
def verdict(
    target: Target,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print it for a pull request, with its files' sha256.")] = False,
) -> None:
    """Decide from the scored arms. The exit code is the verdict's."""
    if as_json and markdown:
        raise typer.BadParameter("one of the two", param_hint="--json and --markdown")
    run = _verbs.open_run(target)
    result = _verbs.verdict(run)
    if markdown:
        print(_verbs.verdict_page(run, result), end="")
    else:
        show(result, as_json, lambda: _text.print_verdict(result, console()))
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=STAGES)
def report(target: Target) -> None:
    """Write the report page and print its path."""
    print(_verbs.report(_verbs.open_run(target)))
