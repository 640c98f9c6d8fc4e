"""The application that the commands are registered with, and how they answer: a record as JSON, or in words."""

import importlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tunesmith.rundir.records.base import Record

# Headings of the help, in the order of a run.
LOOK, WHOLE, STAGES, EVIDENCE, USE = "Look at data first", "A whole run", "Its stages", "More evidence", "Use it"
BRING = "Bring what you have"


app = typer.Typer(
    help="Fine-tune open-weights language models, and prove whether it was worth it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Lazy:
    """A module that is imported when a command first uses it, so that help answers at once."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def console() -> Console:
    """Standard output, as wide as the terminal, or 100 columns in a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def print_json(result: "Record | None") -> None:
    """A record on stdout, nothing beside it; ``null`` where the recipe asks for no such thing."""
    print(json.dumps(None if result is None else result.to_json(), indent=2, ensure_ascii=False, allow_nan=False))


def show(result: "Record | None", as_json: bool, in_words: Callable[[], object] = lambda: None) -> None:
    """What a verb returned: the record as JSON, or in words."""
    if as_json:
        print_json(result)
    else:
        in_words()
