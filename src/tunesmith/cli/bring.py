"""Commands for what somebody has already: a model, a configuration, an endpoint of another tool."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from tunesmith.cli.application import BRING, Lazy, app, console, show
from tunesmith.cli.options import AsJson, Columns, Delimiter, Encoding, Format, Reasoning, Source, Take, Turns

logger = logging.getLogger(__name__)
_record, _options = Lazy("tunesmith.pipeline.record"), Lazy("tunesmith.cli.read_options")
_stage, _verbs = Lazy("tunesmith.pipeline.stage"), Lazy("tunesmith.pipeline.verbs")
_import_text, _text = Lazy("tunesmith.cli.import_text"), Lazy("tunesmith.cli.text")
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


@app.command("import", rich_help_panel=BRING)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON, or a notebook or script of Unsloth.")],
    tool: Annotated[
        Literal["axolotl", "llama-factory", "trl", "unsloth", "openai", "ms-swift"] | None,
        typer.Option("--from", help="The tool, when it is not to be told from the keys."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="How answers are scored; proposed from the rows when not given.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="KEY=VALUE", help="A key of the recipe's task, e.g. json_schema=s.json."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Rows in place of those that FILE names.")] = None,
    format: Format = None,
    column: Columns = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of the tool, in place of what FILE says.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A refused key that is to be left out.")] = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs trained there, each on rows of its own.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The recipe; FILE's name here by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe from a configuration of Axolotl, LLaMA-Factory, TRL, Unsloth, ms-swift or OpenAI."""
    module = _stage.module_of("import_config")
    wishes = module.Wishes(
        tool=tool,
        data=data,
        options=_options.read_options(format, column, None, None, None, "refuse", None, None),
        metric=metric,
        task=_import_text.settings(task, "--task"),
        settings=_import_text.settings(settings, "--set"),
        without=tuple(without or ()),
        gpus=gpus,
        out=out,
    )
    imported = module.import_config(file, wishes)
    show(imported, as_json, lambda: _import_text.print_imported(imported, console()))
    _import_text.refuse(imported)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"expected a JSON object: {error}", param_hint="--body") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"expected a JSON object, found {text!r:.60}", param_hint="--body")
    return cast("dict[str, Any]", value)


@app.command(rich_help_panel=BRING)
def record(
    endpoint: Annotated[str, typer.Option("--endpoint", metavar="URL", help="Address, up to and with /v1.")],
    model: Annotated[str, typer.Option("--model", help="The model's name there.")],
    data: Annotated[str, typer.Option("--data", help="File, directory or hub id; or a run, whose test part is asked.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .jsonl file that keeps the answers; it is added to.")],
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the key.")
    ] = None,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option("--price", metavar="PROMPT ANSWER", help="Of a million prompt tokens, and of a million answer tokens."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 1024,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Ask the first so many; all when not given.")] = None,
    body: Annotated[str, typer.Option("--body", metavar="JSON", help="More keys of every request; null takes one out.")] = "{}",
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Questions asked at a time.")] = 4,
    yes: Annotated[bool, typer.Option("--yes", help="Ask without a question first.")] = False,
    format: Format = None,
    column: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Keep the answers of a model behind an API before it is switched off. Says first what it costs; goes on where it ended."""
    asked = _record.Asked(
        endpoint=endpoint,
        model=model,
        api_key_env=api_key_env,
        max_new_tokens=max_new_tokens,
        body=_object(body),
        concurrency=concurrency,
        prices=price,
    )
    options = _options.read_options(format, column, None, None, None, "refuse", None, None)
    to_ask = _record.rows_to_ask(data, out, asked, options, rows)
    logger.info(_record.estimate(to_ask, asked))
    if to_ask.left and not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody is there to ask whether that is meant; add --yes", param_hint="--yes")
        typer.confirm("ask them?", abort=True, err=True)
    found = _record.record(to_ask, out, asked)
    for line in found.failed:
        logger.warning(f"refused: {line}")
    there = found.rows - len(found.failed)
    show(found, as_json, lambda: print(f"{there} of {found.rows} answers of {model} in {out}"))
    raise typer.Exit(7 if found.failed else 0)
