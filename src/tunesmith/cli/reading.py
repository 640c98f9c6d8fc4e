"""Options of the commands that read rows, as the reader takes them."""

from pathlib import Path
from typing import Literal

import typer

from tunesmith.data.choices import Take as Taken
from tunesmith.data.read import ReadOptions
from tunesmith.data.reasoning import Mode


def read_options(
    format: str | None,
    columns: list[str] | None,
    quarantine: Path | None,
    encoding: str | None,
    delimiter: str | None,
    turns: Literal["refuse", "trim", "merge"],
    reasoning: Mode | None,
    take: Taken | None,
    parse_template: bool = False,
    requests: Path | None = None,
) -> ReadOptions:
    """How rows are read, from the options of a command.

    Raises:
        BadParameter: a ``--column`` that is no ``NAME=COLUMN``.
    """
    named: dict[str, str] = {}
    for column in columns or []:
        name, equals, theirs = column.partition("=")
        if not (name and equals and theirs):
            raise typer.BadParameter(f"expected NAME=COLUMN, found {column!r}", param_hint="--column")
        named[name] = theirs
    return ReadOptions(
        format,
        named or None,
        None,
        "refuse" if quarantine is None else "quarantine",
        encoding=encoding,
        delimiter=delimiter,
        turns=turns,
        reasoning=reasoning,
        take=take,
        parse_template=parse_template,
        requests=requests,
    )
