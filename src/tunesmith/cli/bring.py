"""Commands that take over what was made with other tools."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunesmith.cli.application import BRING, Lazy, app, console, show
from tunesmith.cli.options import AsJson, Columns, Format

_stage = Lazy("tunesmith.pipeline.stage")
_options = Lazy("tunesmith.cli.read_options")
_text = Lazy("tunesmith.cli.import_text")


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
        task=_text.settings(task, "--task"),
        settings=_text.settings(settings, "--set"),
        without=tuple(without or ()),
        gpus=gpus,
        out=out,
    )
    imported = module.import_config(file, wishes)
    show(imported, as_json, lambda: _text.print_imported(imported, console()))
    _text.refuse(imported)
