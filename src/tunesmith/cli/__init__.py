"""The command line: parses and prints, nothing else. One function per verb; ``tunesmith.pipeline`` does the work.

Data goes to stdout, talk and errors to stderr. Exit codes: 0 done (or verdict deploy), 2 usage, 3-9 and 20 errors
(``errors.py``), 10-16 verdicts (``evaluate/gate.py``), 21-24 advice (``advise/decide.py``), 130 interrupted.
"""

import importlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from tunesmith import __version__, hardware
from tunesmith.cli.ending import run_to_its_end
from tunesmith.tracking import terminal, visible

if TYPE_CHECKING:
    from tunesmith.messages import Message
    from tunesmith.rundir.records.base import Record

logger = logging.getLogger(__name__)


class _Lazy:
    """A module that is imported when a command first uses it, so that help answers at once."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


_verbs, _stage, _lines = (_Lazy(f"tunesmith.pipeline.{name}") for name in ("verbs", "stage", "lines"))
_recipe, _check_page = _Lazy("tunesmith.recipe"), _Lazy("tunesmith.report.check_page")
_targets, _options = _Lazy("tunesmith.data.targets"), _Lazy("tunesmith.cli.read_options")
_plan, _plan_text = _Lazy("tunesmith.pipeline.plan"), _Lazy("tunesmith.cli.plan_text")
_preview_page, _preview_text = _Lazy("tunesmith.report.preview_page"), _Lazy("tunesmith.cli.preview_text")
_text, _status_text, _export_text = (_Lazy(f"tunesmith.cli.{name}") for name in ("text", "status_text", "export_text"))

# Headings of the help, in the order of a run.
LOOK, WHOLE, STAGES, EVIDENCE, USE = "Look at data first", "A whole run", "Its stages", "More evidence", "Use it"


def _console() -> Console:
    """Standard output, as wide as the terminal, or 100 columns in a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


app = typer.Typer(
    help="Fine-tune open-weights language models, and prove whether it was worth it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="A recipe (its run is made) or a run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory for a recipe; runs/<name> by default.")]


def _print_json(result: "Record | None") -> None:
    """A record on stdout, nothing beside it; ``null`` where the recipe asks for no such thing."""
    print(json.dumps(None if result is None else result.to_json(), indent=2, ensure_ascii=False, allow_nan=False))


def _show(result: "Record | None", as_json: bool, in_words: Callable[[], object] = lambda: None) -> None:
    """What a verb returned: the record as JSON, or in words."""
    if as_json:
        _print_json(result)
    else:
        in_words()


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
        _print_json(report)
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
    _show(conversion, as_json, lambda: print(f"{conversion.reading.rows} rows written to {target}"))


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


@app.command(rich_help_panel=WHOLE)
def advise(
    target: Target,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Ask no model; answer in seconds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether to tune at all, before any training. The exit code is the advice's."""
    directory = _verbs.open_run(target, out)
    result = _verbs.advise(directory, quick)
    _show(result, as_json, lambda: _text.print_advice(result, _console()))
    logger.info(f"advice: {directory.path / 'advice.json'}")
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=WHOLE)
def plan(
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A recipe, a run, or a model (a directory with its config.json will do)."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="That training may take, e.g. 16GB; all of the card's.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", metavar="CARD", help="A card by name; this machine's by default.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=2, help="Of a micro-batch; the recipe's train.max_length, or 2048.")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Model size by technique instead, on each --gpu; needs no target.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what memory and disk training takes, and the fastest way to fit a machine. Loads nothing. Exit code 1: none fits."""
    cards = gpu or []
    if table:
        if target is not None or memory is not None:
            raise typer.BadParameter("takes --tokens and --gpu alone", param_hint="--table")
        shown = _plan.table(tokens or 2048, cards)
        return _show(shown, as_json, lambda: _plan_text.print_table(shown, _console()))
    if target is None:
        raise typer.BadParameter("give a recipe, a run or a model; or --table", param_hint="TARGET")
    if len(cards) > 1:
        raise typer.BadParameter("one card for a plan; several with --table", param_hint="--gpu")
    found = _plan.plan(target, memory, cards[0] if cards else None, tokens)
    _show(found, as_json, lambda: _plan_text.print_plan(found, _console()))
    raise typer.Exit(0 if found.fits else 1)


@app.command(rich_help_panel=WHOLE)
def run(
    target: Target,
    out: Out = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take over a directory that is another recipe's run.")] = False,
    until: Annotated[str, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = "report",
    force: Annotated[
        list[str] | None, typer.Option("--force", metavar="STAGE", help="Make it again though it is done; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and why; make nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdict as JSON; before there is one, how the stages stand.")
    ] = False,
) -> None:
    """All stages, from data to verdict and report. The exit code is the verdict's."""
    if dry_run:
        stages = _verbs.dry_run(_verbs.look_at(target, out, replace=replace))
        return _show(stages, as_json, lambda: _status_text.print_status(stages, _console()))
    directory = _verbs.open_run(target, out, replace=replace)
    result = _verbs.run(directory, until=until, force=force or ())
    if result is None:
        return _print_json(_verbs.status(directory)) if as_json else None
    _show(result, as_json, lambda: _text.print_verdict(result, _console()))
    if not as_json:
        _status_text.print_times(directory.stages(), _console())
    logger.info(f"report: {directory.report_file}")
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=WHOLE)
def status(target: Target, as_json: AsJson = False) -> None:
    """Say which stages are done, which are not and why, and how long they took. Writes nothing."""
    stages = _verbs.status(_verbs.look_at(target))
    _show(stages, as_json, lambda: _status_text.print_status(stages, _console()))


@app.command(rich_help_panel=STAGES)
def data(target: Target, out: Out = None) -> None:
    """Read, check and split the rows."""
    _verbs.data(_verbs.open_run(target, out))


@app.command(rich_help_panel=STAGES)
def render(target: Target, out: Out = None) -> None:
    """Render the rows with the model's chat template and mark what is supervised."""
    _verbs.render(_verbs.open_run(target, out))


@app.command(rich_help_panel=STAGES)
def train(target: Target, out: Out = None, as_json: AsJson = False) -> None:
    """Train the adapter."""
    training = _verbs.train(_verbs.open_run(target, out))
    _show(training, as_json)


@app.command(rich_help_panel=STAGES)
def export(
    target: Target,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and how large; needs no training.")
    ] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Then score several GGUF types on dev, and recommend one.")] = False,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="With --sweep: score this type; may be repeated. Seven by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written, the plan or the scores as JSON.")] = False,
) -> None:
    """Write the forms that are deployed: merged, GGUF, what Ollama, llama.cpp and vLLM need. All of them or none."""
    if types and not sweep:
        raise typer.BadParameter("is read with --sweep; the recipe's export.gguf says what is written", param_hint="--type")
    if dry_run:
        plan = _stage.module_of("export").plan(_verbs.look_at(target, out))
        return _show(plan, as_json, lambda: print("\n".join(_export_text.plan_lines(plan))))
    directory = _verbs.open_run(target, out)
    if sweep:
        scores = _verbs.sweep(directory, tuple(types or ()))
        return _show(scores, as_json, lambda: print("\n".join(_export_text.sweep_lines(scores))))
    _show(_verbs.export(directory), as_json)


@app.command(rich_help_panel=STAGES)
def parity(target: Target, as_json: AsJson = False) -> None:
    """Prove that every exported form is the model that was trained. Exit code 14 when one is not, 12 when that is not known."""
    result = _verbs.parity(_verbs.open_run(target))
    _show(result, as_json, lambda: _export_text.print_parity(result, _console()))
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=STAGES)
def evaluate(
    target: Target,
    out: Out = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Score this arm only; may be repeated.")] = None,
) -> None:
    """Score the arms on the sealed test part."""
    _verbs.evaluate(_verbs.open_run(target, out), tuple(arm) if arm else None)


@app.command(rich_help_panel=STAGES)
def forgetting(target: Target, as_json: AsJson = False) -> None:
    """Measure what the tuned model has forgotten, against its base."""
    losses = _verbs.forgetting(_verbs.open_run(target))
    _show(losses, as_json)


@app.command(rich_help_panel=STAGES)
def verdict(target: Target, as_json: AsJson = False) -> None:
    """Decide from the scored arms. The exit code is the verdict's."""
    result = _verbs.verdict(_verbs.open_run(target))
    _show(result, as_json, lambda: _text.print_verdict(result, _console()))
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=STAGES)
def report(target: Target) -> None:
    """Write the report page and print its path."""
    print(_verbs.report(_verbs.open_run(target)))


@app.command(rich_help_panel=EVIDENCE)
def seeds(target: Target, as_json: AsJson = False) -> None:
    """Train and score the adapters of evaluate.seeds."""
    adapters = _verbs.seeds(_verbs.open_run(target))
    _show(adapters, as_json)


@app.command("learning-curve", rich_help_panel=EVIDENCE)
def learning_curve(target: Target, as_json: AsJson = False) -> None:
    """Train on shares of the train part and say what more data would buy."""
    curve = _verbs.learning_curve(_verbs.open_run(target))
    _show(curve, as_json)


@app.command(rich_help_panel=USE)
def chat(
    target: Target,
    compare: Annotated[bool, typer.Option("--compare", help="Show the base model's answer beside the tuned one's.")] = False,
) -> None:
    """Talk to the tuned model. An empty line starts over, end of input leaves."""
    answer = _verbs.chat(_verbs.look_at(target), compare)
    if sys.stdin.isatty():
        logger.info("type a message; an empty line starts a new conversation, Ctrl-D leaves")
    conversation: list[Message] = []
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            conversation = []
            continue
        conversation.append({"role": "user", "content": text})
        answers = answer(conversation)
        for name, text in answers.items():
            print(f"{name}: {text}" if compare else text, flush=True)
        conversation.append({"role": "assistant", "content": answers["tuned"]})


@app.command("accept-base", rich_help_panel=USE)
def accept_base(target: Target) -> None:
    """Say that the adapter is meant for the base that is there now, though its weights are not those it was trained on."""
    print(_verbs.accept_base(_verbs.open_run(target)))


@app.command(rich_help_panel=USE)
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(_recipe.json_schema())


def main() -> None:
    """Entry point."""
    hardware.grow_gpu_segments()
    run_to_its_end(app)
