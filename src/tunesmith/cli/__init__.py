"""The command line: parses and prints, nothing else. One function a verb, in the module of its heading in the help;
``tunesmith.pipeline`` does the work.

Data goes to stdout, talk and errors to stderr. Exit codes: 0 done (or verdict deploy), 2 usage, 3-9 and 20 errors
(``errors.py``), 10-16 verdicts (``evaluate/gate.py``), 21-24 advice (``advise/decide.py``), 130 interrupted.
"""

import importlib
from typing import Annotated

import typer

from tunesmith import __version__, hardware
from tunesmith.cli.application import Lazy, app
from tunesmith.cli.ending import ended_well, run_to_its_end
from tunesmith.launch.variables import launch
from tunesmith.tracking import terminal

_follow = Lazy("tunesmith.pipeline.follow")

for heading in ("look", "whole", "stages", "evidence", "bring", "use", "serve", "web", "share"):  # in the order of the help
    importlib.import_module(f"tunesmith.cli.{heading}")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def settings(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what helps to find a fault.")] = False,
) -> None:
    """Fine-tune open-weights language models, and prove whether it was worth it."""
    terminal.set_verbosity(verbose - quiet)


def main() -> None:
    """Entry point."""
    hardware.grow_gpu_segments()
    run_to_its_end(_whole)


def _whole() -> None:
    """The command; in one of several processes that were launched together, its part of it."""
    if launch() is None:
        return app()
    _follow.run_together(lambda: ended_well(app))
