"""The command line: parses and prints, nothing else. One function per verb; ``tunesmith.api`` does the work.

Data goes to stdout, talk and errors to stderr. Exit codes: 0 done (or verdict deploy), 2 usage, 3-9 and 20 errors
(``errors.py``), 10-12 verdicts (``evaluate/gate.py``), 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from tunesmith import api, recipe
from tunesmith.errors import MissingPackage, TunesmithError
from tunesmith.track import say

app = typer.Typer(
    help="Fine-tune open-weights language models, and prove whether it was worth it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="A recipe (its run is made) or a run directory.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory for a recipe; runs/<name> by default.")]

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "safetensors": "train",
    "gguf": "gguf",
    "xllamacpp": "gguf",
    "matplotlib": "report",
}


@app.command()
def run(target: Target, out: Out = None) -> None:
    """All stages, from data to verdict and report. The exit code is the verdict's."""
    directory = api.open_run(target, out)
    result = api.run(directory)
    _print_verdict(result)
    say(f"report: {directory.report_file}")
    raise typer.Exit(result["exit_code"])


@app.command()
def check(path: Annotated[Path, typer.Argument(metavar="DATA", help="A messages JSONL file.")]) -> None:
    """Check a data file and count what is in it."""
    counts = api.check(path)
    print(f"{counts['rows']} rows, {counts['messages']} messages, {counts['repeated_prompts']} repeat an earlier prompt")


@app.command()
def data(target: Target, out: Out = None) -> None:
    """Read, check and split the rows."""
    api.data(api.open_run(target, out))


@app.command()
def render(target: Target, out: Out = None) -> None:
    """Render the rows with the model's chat template and mark what is supervised."""
    api.render(api.open_run(target, out))


@app.command()
def train(target: Target, out: Out = None) -> None:
    """Train the adapter."""
    api.train(api.open_run(target, out))


@app.command()
def export(target: Target, out: Out = None) -> None:
    """Merge the adapter, convert to GGUF and quantise."""
    api.export(api.open_run(target, out))


@app.command()
def evaluate(
    target: Target,
    out: Out = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Score this arm only; may be repeated.")] = None,
) -> None:
    """Score the arms on the sealed test part."""
    api.evaluate(api.open_run(target, out), tuple(arm) if arm else None)


@app.command()
def verdict(target: Target) -> None:
    """Decide from the scored arms. The exit code is the verdict's."""
    result = api.verdict(api.open_run(target))
    _print_verdict(result)
    raise typer.Exit(result["exit_code"])


@app.command()
def report(target: Target) -> None:
    """Write the report page and print its path."""
    print(api.report(api.open_run(target)))


@app.command()
def chat(
    target: Target,
    compare: Annotated[bool, typer.Option("--compare", help="Show the base model's answer beside the tuned one's.")] = False,
) -> None:
    """Talk to the tuned model. An empty line starts over, end of input leaves."""
    answer = api.chat(api.open_run(target), compare)
    if sys.stdin.isatty():
        say("type a message; an empty line starts a new conversation, Ctrl-D leaves")
    conversation: list[dict[str, str]] = []
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not said.strip():
            conversation = []
            continue
        conversation.append({"role": "user", "content": said})
        answers = answer(conversation)
        for name, text in answers.items():
            print(f"{name}: {text}" if compare else text, flush=True)
        conversation.append({"role": "assistant", "content": answers["tuned"]})


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(recipe.json_schema())


def _print_verdict(result: dict[str, Any]) -> None:
    """The tables of arms and the verdict, on stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    title = f"{result['n']} sealed test rows; gains against {result['best_prompt']}, the best prompt on dev"
    gains = Table("arm", "right", "95 %", "gain", "95 % of gain", "p", "won/lost", title=title, box=box.SIMPLE)
    finer = [name for name in ("strict", "parse", "schema", "field_f1") if name in result["arms"][0]]
    costs = Table("arm", *finer, "prompt tokens", "new tokens", "ms", box=box.SIMPLE)
    for table in (gains, costs):
        for column in table.columns[1:]:
            column.justify = "right"
    for arm in result["arms"]:
        gains.add_row(
            arm["arm"], _points(arm["score"]), f"{_points(arm['low'])}-{_points(arm['high'])}", *_gain(arm["against"])
        )
        figures = (f"{arm[name]:.0f}" for name in ("prompt_tokens", "new_tokens", "ms"))
        costs.add_row(arm["arm"], *(_points(arm[name]) for name in finer), *figures)
    console.print(gains)
    console.print(costs)
    console.print(f"[bold]verdict: {result['verdict']}[/bold]")
    console.print(result["reason"], soft_wrap=True)
    detectable = _points(result["comparison"]["detectable"])
    console.print(f"{result['n']} such rows find a gain of {detectable} points four times in five")


def _gain(against: dict[str, Any] | None) -> tuple[str, str, str, str]:
    """Gain, interval, p and discordant rows of an arm; blank for the arm that the others are compared with."""
    if against is None:
        return "", "", "", ""
    p = f"{against['p']:.3f}" if against["p"] >= 0.001 else "<.001"
    interval = f"{100 * against['low']:+.1f} to {100 * against['high']:+.1f}"
    return f"{100 * against['gain']:+.1f}", interval, p, f"{against['won']}/{against['lost']}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> None:
    """Entry point: user errors become one message and an exit code, never a traceback."""
    try:
        app()
    except TunesmithError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in EXTRAS:
            raise
        _fail(
            MissingPackage(f"this needs the package {name}, which is not installed", f"pip install 'tunesmith[{EXTRAS[name]}]'")
        )
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(TunesmithError(f"{error.filename}: {error.strerror}", "is there room, and may it be written?"))


def _fail(error: TunesmithError) -> None:
    say(f"error: {error}")
    sys.exit(error.exit_code)
