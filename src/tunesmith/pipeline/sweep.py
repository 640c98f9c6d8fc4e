"""Which quantisation to deploy: several types are written, asked the dev rows, and held against the tuned model.

A type is small or good, and how good depends on the model (rows that no block of 256 divides fall back to wider types) and on
the task. So each is measured: its file, and its answers to the dev rows against those of the model as it was trained, paired
by row. Recommended is the smallest file that is non-inferior by the margin of parity (half of ``task.min_gain``,
``parity/checks.py``). The sealed test part is not read, so trying nine types spends nothing of it; the best of nine on dev
is a choice, and the verdict on the one that is deployed stays the gate's.

Files that the recipe does not ask for are written one at a time into a directory that is removed again. An importance matrix
is used where the export made one. For the dynamic types tensors are scored and priced once, or what the export found is taken;
of a mixture of experts there are none, and they are left out unless they are named. Cost: a quantisation and at most
``SWEEP_ROWS`` answers of llama.cpp for each type.
"""

import functools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.filesize import decimal

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.convert import describe
from tunesmith.checkpoints.gguf_write.imatrix import read_imatrix
from tunesmith.checkpoints.gguf_write.quantize import Importance
from tunesmith.checkpoints.gguf_write.rounding import Rounding
from tunesmith.engines.llama_cpp import LlamaCppEngine
from tunesmith.engines.open import open_in_process
from tunesmith.errors import RunError
from tunesmith.export.forms.dynamic import Priced, costs_name, priced, scores_name, stack_of
from tunesmith.export.forms.gguf import imatrix_name
from tunesmith.export.gguf.scores import column_weights, read_scores
from tunesmith.export.gguf.single import write_type
from tunesmith.export.names import gguf_name
from tunesmith.parity.checks import metric_check
from tunesmith.parity.recommend import recommend
from tunesmith.parity.task import Outputs, Task
from tunesmith.pipeline.dev_task import dev_task
from tunesmith.pipeline.export import job_of
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.sweep_stage import SWEEP_ROWS, SWEEP_TYPES
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.recipe import Recipe
from tunesmith.recipe.run import plain_type
from tunesmith.report.figures import sweep_figure
from tunesmith.rundir import RunDir, write_text
from tunesmith.rundir.records.export import Export, RoundingCosts
from tunesmith.rundir.records.parity import Sweep, SweepType

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Measure types on dev; writes ``export/sweep.json`` and ``sweep.svg``.

    Raises:
        RunError: the task's metric scores no answer by itself.
        ExportError: a type that cannot be written, or no room for it.
    """
    result = _measured(run, recipe, tuple(argument.split()))
    write_text(run.export / "sweep.svg", sweep_figure(result))
    result.write(run.export / "sweep.json")


def _measured(run: RunDir, recipe: Recipe, types: tuple[str, ...]) -> Sweep:

    task = dev_task(run, recipe, SWEEP_ROWS)
    if isinstance(task, str):
        raise RunError(f"{run.path}: no type can be scored: {task}", "choose a type by its size and look at answers")
    model = tuned_model(run, recipe)
    engine = open_in_process(model.here, model.adapter, recipe.evaluate.batch_size)
    tuned = task.ask("tuned", engine)
    engine.close()
    del engine  # the model's memory is llama.cpp's from here on
    name = str(recipe.name)
    file = run.export / imatrix_name(name)
    importance = read_imatrix(file).values if file.exists() else None
    with tempfile.TemporaryDirectory(dir=run.export, prefix=".sweep-") as scratch:
        price = _price(run, recipe, importance, Path(scratch))
        entries = [_entry(run, name, task, kind, Path(scratch), importance, tuned, price) for kind in _there(run, types)]
    recommended, reason = recommend(entries)
    return Sweep(
        types=tuple(sorted(entries, key=lambda entry: -entry.bytes)),
        tuned=task.score(tuned),
        n=task.n,
        margin=task.margin,
        metric=task.metric,
        imatrix=importance is not None,
        recommended=recommended,
        reason=reason,
    )


def _there(run: RunDir, types: tuple[str, ...]) -> tuple[str, ...]:
    """The types without the dynamic ones where nobody named them and the model has experts."""
    file = run.export / gguf_name(str(run.recipe().name), next(iter(Export.read(run.export / "export.json").files)))
    stack = stack_of((tensor.name, tensor.shape) for tensor in GgufReader(file).tensors)
    if stack is None or types != SWEEP_TYPES:
        return types
    logger.info(f"sweep: no dynamic types: {stack} is a stack of experts, which nothing scores")
    return tuple(kind for kind in types if plain_type(kind) == kind)


def _price(run: RunDir, recipe: Recipe, importance: Importance | None, scratch: Path) -> Callable[[Path], Priced]:
    """What dynamic types of the 16-bit file are chosen by: the export's, or found once."""

    @functools.cache
    def price(source: Path) -> Priced:
        name = str(recipe.name)
        if not (run.export / costs_name(name)).exists():
            return priced(job_of(run, recipe), run.merged, source, importance, scratch)
        found = RoundingCosts.read(run.export / costs_name(name))
        weights = column_weights(read_scores(run.export / scores_name(name))) if importance is None else importance
        return Priced(Rounding(found.costs, found.lost), weights)

    return price


def _entry(
    run: RunDir,
    name: str,
    task: Task,
    kind: str,
    scratch: Path,
    importance: Importance | None,
    tuned: Outputs,
    price: Callable[[Path], Priced],
) -> SweepType:
    """One type: written where the export did not, asked, compared, and removed again."""
    file = run.export / gguf_name(name, kind)
    if not file.exists():
        file = write_type(run.merged, run.export / gguf_name(name, "F16"), kind, scratch, importance, price)
    size = describe(file)
    with LlamaCppEngine(file, task.context, prompts=task.n) as engine:
        answers = task.ask(kind, engine)
    if file.parent == scratch:
        file.unlink()
    score = task.compare(answers, tuned)
    check = metric_check(score, task.margin)
    logger.info(f"sweep: {kind} {decimal(size.bytes)}: {check.summary}")
    return SweepType(
        type=kind,
        bytes=size.bytes,
        bits_per_weight=size.bits_per_weight,
        task=score,
        state=check.state,
        summary=check.summary,
    )
