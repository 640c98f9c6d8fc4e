"""Commands that look at data and need no run."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.application import LOOK, Lazy, app, print_json, show
from tunesmith.cli.options import (
    AsJson,
    Columns,
    Delimiter,
    Encoding,
    Format,
    Model,
    Quarantine,
    Reasoning,
    Source,
    Take,
    Template,
    Turns,
)
from tunesmith.tracking import visible

logger = logging.getLogger(__name__)
_stage = Lazy("tunesmith.pipeline.stage")
_lines = Lazy("tunesmith.pipeline.lines")
_check_page = Lazy("tunesmith.report.check_page")
_targets = Lazy("tunesmith.data.targets")
_options = Lazy("tunesmith.cli.read_options")
_preview_page = Lazy("tunesmith.report.preview_page")
_preview_text = Lazy("tunesmith.cli.preview_text")


@app.command(rich_help_panel=LOOK)
def check(
    source: Source,
    model: Model = None,
    template: Template = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens above which a row is too long (with --model).", min=2)] = None,
    format: Format = None,
    column: Columns = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    turns: Turns = "refuse",
    reasoning: Reasoning = None,
    take: Take = None,
    quarantine: Quarantine = None,
    near: Annotated[bool, typer.Option(help="Search for near duplicates.")] = True,
    benchmark: Annotated[Path | None, typer.Option(help="Data whose passages must not stand in these rows.")] = None,
    benchmark_column: Annotated[str | None, typer.Option(help="Its column that holds the questions.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole report as an HTML page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at data: bad rows, duplicates, lengths, labels, secrets. Needs no recipe."""
    if model is None and (max_length is not None or template is not None):
        raise typer.BadParameter("--max-length and --template need --model", param_hint="--model")
    if page is not None:
        read = (source, benchmark, template, quarantine)
        _targets.refuse_target(page, [path for path in read if path is not None], _targets.PAGE)
    report = _stage.module_of("check").check(
        source,
        _options.read_options(format, column, quarantine, encoding, delimiter, turns, reasoning, take),
        model=model,
        template=template,
        max_length=max_length,
        near=near,
        benchmark=benchmark,
        benchmark_column=benchmark_column,
        rejected=quarantine,
    )
    if as_json:
        print_json(report)
    else:
        for line in _lines.check_lines(report):
            print(visible(line))
    if page is not None:
        _check_page.write_check_page(report, page)
        logger.info(f"page: {page}")


@app.command(rich_help_panel=LOOK)
def init(
    source: Source,
    model: Annotated[str, typer.Option("--model", help="Hub id, directory or .gguf file to tune.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The recipe; DATA.yaml here by default.")] = None,
    format: Format = None,
    column: Columns = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    turns: Turns = "refuse",
    reasoning: Reasoning = None,
    take: Take = None,
) -> None:
    """Look at data and write a commented recipe for it, with the metric that fits its answers and why."""
    options = _options.read_options(format, column, None, encoding, delimiter, turns, reasoning, take)
    print(_stage.module_of("init").init(source, model, options, out))


@app.command(rich_help_panel=LOOK)
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The .jsonl file to write.")],
    format: Format = None,
    column: Columns = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    turns: Turns = "refuse",
    reasoning: Reasoning = None,
    take: Take = None,
    parse_template: Annotated[
        bool, typer.Option("--parse-template", help="Read texts and prompts that hold a rendered template as conversations.")
    ] = False,
    requests: Annotated[
        Path | None, typer.Option("--requests", metavar="FILE", help="DATA is the output of a batch, FILE what was sent to it.")
    ] = None,
    quarantine: Quarantine = None,
    as_json: AsJson = False,
) -> None:
    """Write data of any format as messages JSONL."""
    options = _options.read_options(
        format, column, quarantine, encoding, delimiter, turns, reasoning, take, parse_template, requests
    )
    conversion = _stage.module_of("convert").convert(source, target, options, quarantine)
    for note in _lines.conversion_lines(conversion):
        logger.info(note)
    show(conversion, as_json, lambda: print(f"{conversion.reading.rows} rows written to {target}"))


@app.command(rich_help_panel=LOOK)
def preview(
    source: Source,
    model: Annotated[str, typer.Option("--model", help="Hub id, directory or .gguf file.")],
    template: Template = None,
    rows: Annotated[int, typer.Option(help="How many rows.", min=1)] = 3,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    format: Format = None,
    column: Columns = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    turns: Turns = "refuse",
    reasoning: Reasoning = None,
    take: Take = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows as an HTML page, in colours.")] = None,
) -> None:
    """Show rows as a model's template writes them: what is supervised, what is context, what are control tokens."""
    if page is not None:
        _targets.refuse_target(page, [source, model, *([] if template is None else [template])], _targets.PAGE)
    shown = _stage.module_of("preview").preview(
        source,
        model,
        _options.read_options(format, column, None, encoding, delimiter, turns, reasoning, take),
        template=template,
        rows=rows,
    )
    for line in shown.lines:
        logger.info(line)
    if page is None:
        _preview_text.print_preview(shown, shown.dated, ids)
    else:
        _preview_page.write_preview_page(shown, source, model, shown.dated, page)
        logger.info(f"preview: {page}")
