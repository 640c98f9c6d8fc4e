"""Arguments and options that several commands take, each with its one text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="A recipe (its run is made) or a run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory for a recipe; runs/<name> by default.")]

Source = Annotated[str, typer.Argument(metavar="DATA", help="File, directory or hub id (owner/name:split).")]
Format = Annotated[str | None, typer.Option("--format", help="Format of the rows, when it is not to be told from them.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="NAME=COLUMN", help="Our name for a column, e.g. prompt=question.")
]
Encoding = Annotated[str | None, typer.Option("--encoding", help="Encoding of files of text, e.g. cp1252.")]
Delimiter = Annotated[str | None, typer.Option("--delimiter", help="Between the cells of CSV files: a character, or tab.")]
Turns = Annotated[
    Literal["refuse", "trim", "merge"],
    typer.Option("--turns", help="Rows whose turns are out of order: refuse, trim what is no question or answer, or merge."),
]
Reasoning = Annotated[
    Literal["split", "keep", "drop"] | None,
    typer.Option("--reasoning", help="What happens to reasoning (<think>) in the text of answers."),
]
Take = Annotated[
    Literal["chosen"] | None, typer.Option("--take", help="Read the good answers of preference data (chosen and rejected).")
]
Quarantine = Annotated[
    Path | None,
    typer.Option(
        "--quarantine",
        metavar="FILE",
        help="Keep bad rows in FILE with their reasons, and go on; an earlier such FILE is replaced.",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="Hub id, directory or .gguf file: render every row with its template.")
]
Template = Annotated[
    Path | None,
    typer.Option("--template", help="Jinja file in place of the model's chat template, or the name of one of ours."),
]
