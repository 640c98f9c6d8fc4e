"""What a command is told of its files, as the options that ``data/read.py`` takes.

A module of its own because it is imported where files are read, not for the help.
"""

from pathlib import Path
from typing import Literal

import typer

from tunesmith.data.choices import Take
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
    take: Take | None,
    parse_template: bool = False,
    requests: Path | None = None,
) -> ReadOptions:
    """How the files of a command are read.

    Args:
        format, encoding, delimiter, turns, reasoning, take, parse_template, requests: as ``ReadOptions`` has them.
        columns: ``NAME=COLUMN`` each.
        quarantine: where rows that are wrong go; None where they are refused.

    Returns:
        The options.

    Raises:
        typer.BadParameter: a column without its name or its equals sign.
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
