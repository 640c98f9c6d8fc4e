"""What import says on the terminal, from its record: the four lists, what differs, and both walks over the rows."""

from pydantic import JsonValue
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import BadParameter

from tunesmith.errors import RecipeError
from tunesmith.peers.translation import plain
from tunesmith.pipeline.import_config import setting
from tunesmith.rundir.records.imported import Imported, ImportedKey, Kind
from tunesmith.tracking import visible

TITLES: dict[Kind, str] = {
    "mapped": "mapped",
    "defaulted": "absent there, and written out since the defaults differ",
    "dropped": "dropped, being about speed or output alone",
    "refused": "refused: it changes what is trained, and has no equivalent here",
}


def settings(given: list[str] | None, option: str) -> dict[str, JsonValue]:
    """``KEY=VALUE`` each, with values as YAML reads them.

    Raises:
        typer.BadParameter: a key without its equals sign.
    """
    named: dict[str, JsonValue] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise BadParameter(f"expected KEY=VALUE, found {text!r}", param_hint=option)
        named[key] = setting(value)
    return named


def print_imported(imported: Imported, console: Console) -> None:
    """The lists that hold a key, and what follows."""
    console.print(Text(visible(f"{imported.source}: {imported.tool}")), soft_wrap=True)
    for kind, title in TITLES.items():
        keys = [key for key in imported.keys if key.kind == kind]
        if kind == "dropped" and keys:
            names = ", ".join(dict.fromkeys(key.key for key in keys))
            console.print(Text(visible(f"\n{title}: {names}")), soft_wrap=True)
        elif keys:
            console.print(_table(title, keys))
    for sentence in imported.differs:
        console.print(Text(visible(f"otherwise: {sentence}")), soft_wrap=True)
    _print_walks(imported, console)
    if imported.recipe is not None:
        console.print(Text(visible(f"\nwritten: {imported.recipe}")), soft_wrap=True)
        console.print(Text(visible(f"next: tunesmith run {imported.recipe} --dry-run")), soft_wrap=True)


def _table(title: str, keys: list[ImportedKey]) -> Table:
    table = Table("there", "here", "", title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for key in keys:
        there = "" if key.key == "(none)" else key.key if key.value is None else f"{key.key} {plain(key.value)}"
        here = "" if key.ours is None else f"{key.ours} {plain(key.our_value)}"
        words = f"{key.words}{' (left out)' if key.left_out else ''}"
        hint = f"\n-> {key.hint}" if key.hint and not key.left_out else ""
        table.add_row(
            Text(visible(f"{there:.80}")), Text(visible(f"{here:.80}")), Text(visible(words)) + Text(visible(hint), "italic")
        )
    return table


def _print_walks(imported: Imported, console: Console) -> None:
    if imported.before is None or imported.after is None:
        return
    table = Table("", "rows", "rows a step", "epochs", "steps", "warm-up steps", box=box.SIMPLE, pad_edge=False)
    for name, walk in (("there", imported.before), ("here", imported.after)):
        table.add_row(
            name,
            f"{walk.rows:,}",
            f"{walk.rows_per_step:.4g}",
            f"{walk.epochs:.3g}",
            f"{walk.steps:,}",
            f"{walk.warmup_steps:,}",
        )
    console.print(table)
    console.print(Text(visible(f"tokens are counted: {imported.tokens}")), soft_wrap=True)


def refuse(imported: Imported) -> None:
    """End with an error where keys are refused.

    Raises:
        RecipeError: the keys, and what to type.
    """
    refused = imported.refused
    if not refused:
        return
    lines = [f"  {key.key}: {key.words}{f' -> {key.hint}' if key.hint else ''}" for key in refused]
    names = list(dict.fromkeys(key.key for key in refused if not key.final))
    if any(key.final for key in refused):
        hint = "settle each of them"
    else:
        hint = f"{' '.join(f'--without {name}' for name in names)} writes a recipe that leaves them out and says so"
    raise RecipeError("\n".join([f"{imported.source}: refused, and no recipe was written:", *lines]), hint)
