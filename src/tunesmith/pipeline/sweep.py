"""Which quantisation to deploy: several types are written, asked the dev rows, and held against the tuned model.

A type is small or good, and how good depends on the model (rows that no block of 256 divides fall back to wider types) and on
the task. So each is measured: its file, and its answers to the dev rows against those of the model as it was trained, paired
by row. Recommended is the smallest file that is non-inferior by the margin of parity (half of ``task.min_gain``,
``parity/figures.py``). The sealed test part is not read, so trying seven types spends nothing of it; the best of seven on dev
is a choice, and the verdict on the one that is deployed stays the gate's.

Files that the recipe does not ask for are written one at a time into a directory that is removed again. An importance matrix is
used where the export made one. Cost: a quantisation and at most ``ROWS`` answers of llama.cpp for each type.
"""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tunesmith.errors import ExportError, RunError
from tunesmith.pipeline.engines import gguf_path, in_process
from tunesmith.pipeline.parity_reference import Task, dev_task
from tunesmith.pipeline.stage import stage
from tunesmith.recipe import Recipe
from tunesmith.recipe.run import GgufType
from tunesmith.rundir import RunDir, fingerprint, read_json, write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.evaluate.arms import Outputs

    Values = dict[str, NDArray[np.float32]]

logger = logging.getLogger(__name__)

ROWS = 256  # of dev: a choice among seven needs more than parity's look for what is broken
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M")


def sweep(run: RunDir, types: tuple[str, ...] = ()) -> dict[str, Any]:
    """Measure types (``TYPES`` when none is named) on dev; writes ``export/sweep.json`` and ``sweep.svg``.

    Returns:
        ``types``: of each ``type``, ``bytes``, ``bits_per_weight``, ``score``, ``against`` (``Comparison`` with the tuned
        model), ``state`` (``pass``, ``fail`` or ``unknown``) and ``told``; ``tuned`` (score), ``n``, ``margin``, ``metric``,
        ``imatrix``, ``recommended`` (None where none is non-inferior) and ``told``.

    Raises:
        RunError: nothing was exported, a type that is not known, or the task's metric scores no answer by itself.
        ExportError: a type that cannot be written, or no room for it.
    """
    from tunesmith.evaluate.metrics import scoring

    types = types or TYPES
    if unknown := [kind for kind in types if kind not in get_args(GgufType)]:
        raise RunError(f"{unknown[0]}: not a type that is written here", f"types: {', '.join(get_args(GgufType))}")
    recipe, target = run.recipe(), run.export / "sweep.json"
    key = fingerprint(run.key_of("export"), scoring(recipe.task), recipe.task.min_gain, sorted(types), ROWS)
    with stage(run, "sweep", key, target) as needed:
        if needed:
            task = dev_task(run, recipe, ROWS)
            if isinstance(task, str):
                raise RunError(f"{run.path}: no type can be scored: {task}", "choose a type by its size and look at answers")
            result = _measured(run, recipe, task, types)
            _draw(run, result)
            write_json(target, result)
    return read_json(target)


def sweep_lines(result: dict[str, Any]) -> list[str]:
    """The result as text, largest file first."""
    lines = [f"{'type':<8} {'MB':>8} {'bits':>6} {'score':>7}  against the tuned model"]
    for entry in result["types"]:
        size, bits, score = entry["bytes"] / 1e6, entry["bits_per_weight"], 100 * entry["score"]
        lines.append(f"{entry['type']:<8} {size:>8.1f} {bits:>6.2f} {score:>7.1f}  {entry['told']}")
    return [*lines, f"recommended: {result['recommended'] or 'none of them'}: {result['told']}"]


def recommend(entries: list[dict[str, Any]]) -> tuple[str | None, str]:
    """The smallest type that is non-inferior, and why. A pure function."""
    good = [entry for entry in entries if entry["state"] == "pass"]
    if not good:
        worse = [entry["type"] for entry in entries if entry["state"] == "fail"]
        found = f"surely worse: {', '.join(worse)}" if worse else "none is surely worse either"
        return None, f"no type is non-inferior on these dev rows, {found}; more dev rows would tell"
    best = min(good, key=lambda entry: entry["bytes"])
    return best["type"], "the smallest file that is non-inferior"


def _measured(run: RunDir, recipe: Recipe, task: Task, types: tuple[str, ...]) -> dict[str, Any]:
    from tunesmith.export.forms import imatrix_name
    from tunesmith.export.gguf.imatrix import read_imatrix

    engine = in_process(recipe, run.adapter)
    tuned = task.answers("tuned", engine)
    engine.close()
    del engine
    file = run.export / imatrix_name(str(recipe.name))
    importance = read_imatrix(file).values if file.exists() else None
    with tempfile.TemporaryDirectory(dir=run.export, prefix=".sweep-") as scratch:
        entries = [_entry(run, task, kind, Path(scratch), importance, tuned) for kind in types]
    entries.sort(key=lambda entry: -entry["bytes"])
    recommended, told = recommend(entries)
    return {
        "types": entries,
        "tuned": task.score(tuned),
        "n": len(task.rows),
        "margin": task.margin,
        "metric": task.metric.name,
        "imatrix": importance is not None,
        "recommended": recommended,
        "told": told,
    }


def _entry(run: RunDir, task: Task, kind: str, scratch: Path, importance: "Values | None", tuned: "Outputs") -> dict[str, Any]:
    """One type: written where the export did not, asked, compared, and removed again."""
    from tunesmith.engines.llama_cpp import LlamaCppEngine
    from tunesmith.export.gguf.convert import describe

    file = gguf_path(run, kind)
    if not file.exists():
        file = _written(run, kind, scratch, importance)
    described = describe(file)
    with LlamaCppEngine(file, task.context) as engine:
        answers = task.answers(kind, engine)
    if file.parent == scratch:
        file.unlink()
    facts, check = task.against(answers, tuned)
    logger.info(f"sweep: {kind} {described['bytes'] / 1e6:.1f} MB: {check.told}")
    return {"type": kind, **described, **facts, "state": check.state, "told": check.told}


def _written(run: RunDir, kind: str, scratch: Path, importance: "Values | None") -> Path:
    from tunesmith.export.gguf.convert import convert
    from tunesmith.export.gguf.quantize import quantize

    target = scratch / f"{kind}.gguf"
    if kind == "F16" or kind == "BF16":
        _refuse_full_disk(run)
        convert(run.merged, target, kind)
        return target
    full = next((file for file in (gguf_path(run, "F16"), scratch / "half.gguf") if file.exists()), None)
    if full is None:
        full = scratch / "half.gguf"
        _refuse_full_disk(run)
        convert(run.merged, full)
    quantize(full, target, kind, importance)
    return target


def _refuse_full_disk(run: RunDir) -> None:
    """The 16-bit file and one other are there at a time: no more than twice the merged weights."""
    needed = 2 * sum(file.stat().st_size for file in run.merged.glob("*.safetensors"))
    free = shutil.disk_usage(run.export).free
    if needed > free:
        raise ExportError(
            f"{run.export}: a sweep takes up to {needed:,} bytes at a time, {free:,} are free", "make room, or name fewer types"
        )


def _draw(run: RunDir, result: dict[str, Any]) -> None:
    from tunesmith.report.figures import sweep_figure

    write_text(run.export / "sweep.svg", sweep_figure(result))
