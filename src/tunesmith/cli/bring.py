"""Commands for what somebody has already: a tuned model of another tool."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.application import BRING, Lazy, app, console, show
from tunesmith.cli.options import (
    AsJson,
    Columns,
    Delimiter,
    Encoding,
    Format,
    Reasoning,
    Source,
    Take,
    Turns,
)

logger = logging.getLogger(__name__)
_stage = Lazy("tunesmith.pipeline.stage")
_verbs = Lazy("tunesmith.pipeline.verbs")
_options = Lazy("tunesmith.cli.read_options")
_text = Lazy("tunesmith.cli.text")
_status_text = Lazy("tunesmith.cli.status_text")


@app.command(rich_help_panel=BRING)
def gate(
    source: Source,
    base: Annotated[str, typer.Option("--base", help="What it was tuned from: hub id, directory or .gguf file.")],
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", metavar="DIR", help="A LoRA adapter (PEFT, mlx-lm); may be repeated.")
    ] = None,
    merged: Annotated[
        list[Path] | None, typer.Option("--merged", metavar="DIR", help="A whole tuned model; may be repeated.")
    ] = None,
    gguf: Annotated[
        list[Path] | None, typer.Option("--gguf", metavar="FILE", help="A tuned model as it is deployed; may be repeated.")
    ] = None,
    endpoint: Annotated[
        tuple[str, str] | None,
        typer.Option("--endpoint", metavar="URL NAME", help="An OpenAI-compatible address, and the model's name there."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VAR", help="Environment variable with the endpoint's key.")
    ] = None,
    trained_on: Annotated[
        Path | None, typer.Option("--trained-on", metavar="FILE", help="Rows it was trained on: kept out of the test part.")
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="How answers are scored; told from the rows.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option("--schema", metavar="FILE", help="JSON schema of the answers (metric json).")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="The best instruction you can write: it has to be beaten.")
    ] = None,
    short_prompt: Annotated[
        str | None, typer.Option("--short-prompt", metavar="TEXT", help="System turn that the tuned model is asked with.")
    ] = None,
    min_gain: Annotated[
        float | None, typer.Option("--min-gain", help="Smallest gain over the best prompt worth deploying, e.g. 0.05.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run directory; runs/gate-... by default.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take over a directory that is another recipe's run.")] = False,
    format: Format = None,
    column: Columns = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    turns: Turns = "refuse",
    reasoning: Reasoning = None,
    take: Take = None,
    as_json: AsJson = False,
) -> None:
    """Hold a model that another tool tuned against the best prompt. Trains nothing. The exit code is the verdict's."""
    if api_key_env is not None and endpoint is None:
        raise typer.BadParameter("is for --endpoint", param_hint="--api-key-env")
    module = _stage.module_of("gate")
    candidates = module.named(adapter or [], merged or [], gguf or [], endpoint, api_key_env)
    options = _options.read_options(format, column, None, encoding, delimiter, turns, reasoning, take)
    task = {
        "metric": metric,
        "json_schema": None if json_schema is None else str(json_schema.resolve()),
        "prompt": prompt,
        "short_prompt": short_prompt,
        "min_gain": min_gain,
    }
    directory = module.open_gate(source, base, candidates, options, out, task=task, trained_on=trained_on, replace=replace)
    result = _verbs.run(directory)
    show(result, as_json, lambda: _text.print_verdict(result, console()))
    if not as_json:
        _status_text.print_times(directory.stages(), console())
    logger.info(f"report: {directory.report_file}; the recipe is {directory.recipe_file}")
    raise typer.Exit(result.exit_code)
