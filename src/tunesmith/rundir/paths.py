"""One run directory: its paths, its recipe, and the record of what was done there.

Opening a run to read never writes. Whoever writes holds the lock (``lock.py``) and first finishes what an earlier writer was
killed in the middle of: a rename, an export that is decided and not moved in yet, a file under its temporary name.

A run belongs to one recipe file. Its place is kept in the manifest; another file whose keys differ is refused, because stages
of the two would stand side by side under one verdict. The same file edited is the same run: every stage knows its own inputs.
"""

import dataclasses
import datetime
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.recipe import PROMPT_ARMS, Recipe, dump_recipe, load_recipe
from tunesmith.rundir import lock
from tunesmith.rundir.atomic import flush, recover_directory, remove_leftovers, write_text
from tunesmith.rundir.hashes import file_state
from tunesmith.rundir.names import from_disk, on_disk
from tunesmith.rundir.records.manifest import Manifest
from tunesmith.rundir.records.stages import FileState, Parts, StageRecord, Stages
from tunesmith.rundir.swap import finish_swap, forget_journal


class RunDir:
    """Paths and bookkeeping of one run; makes no directory until something is written.

    Attributes:
        target: what a command is given to work on it: the directory, or the recipe as long as there is none.
    """

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.manifest_file = path / "manifest.json"
        self.stages_file = path / "stages.json"
        self.events_file = path / "events.jsonl"
        self.data = path / "data"
        self.split_file = self.data / "split.json"
        self.data_report_file = self.data / "report.json"
        self.template_file = self.data / "chat_template.jinja"
        self.rendered_file = self.data / "rendered.json"
        self.base_imatrix = self.data / "base.imatrix.gguf"
        self.base_forms_file = self.data / "base.json"
        self.base_sensitivity_file = self.data / "base_sensitivity.safetensors"
        self.metrics_file = path / "metrics.jsonl"
        self.training_file = path / "training.json"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.brought_file = path / "brought.json"
        self.brought = path / "brought"
        self.evaluation = path / "evaluation"
        self.finalists = self.evaluation / "finalists"
        self.choice_file = self.evaluation / "choice.json"
        self.judged = self.evaluation / "judged"
        self.readings = path / "readings"
        self.verdict_file = self.evaluation / "verdict.json"
        self.export = path / "export"
        self.merged = self.export / "merged"
        self.report_file = path / "report.html"
        self.tracked = path / "tracked"
        self._writing = 0
        self._planned: Recipe | None = None
        self.target = path

    def answers(self, name: str) -> Path:
        """Where the answers of an arm lie, or of a finalist that is not the best of its arm (``few_shot:2``)."""
        arm, _, place = name.rpartition(":")
        is_finalist = place.isdigit() and arm in PROMPT_ARMS
        return (self.finalists if is_finalist else self.evaluation) / on_disk(name)

    def judged_answers(self, arm: str) -> Path:
        """Where an arm's answers lie with the scores of a judge."""
        return self.judged / on_disk(arm)

    def file(self, name: str) -> Path:
        """The file that a name of the records stands for, a path below the run directory."""
        return self.path / on_disk(name)

    def brought_template(self, label: str) -> Path:
        """The template that a brought model of this name is asked with."""
        return self.brought / f"{label}.jinja"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, path: Path, recipe: Recipe, source: Path | None = None, *, replace: bool = False) -> "RunDir":
        """Make the directory, or enter an existing one, and write the resolved recipe into it.

        Args:
            source: the recipe file; None for a recipe that was made in Python.
            replace: whether the recipe may take the place of another file's.

        Raises:
            RunError: the place cannot be written, holds something that is not a run, or the run of another recipe file.
        """
        run = cls(path)
        if run._holds(recipe, source, replace):
            return run
        try:
            path.mkdir(parents=True, exist_ok=True)
            with run.writing():
                write_text(run.recipe_file, dump_recipe(recipe))
                dataclasses.replace(run.manifest(), recipe_source=_origin(source)).write(run.manifest_file)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}", "choose another --out") from error
        return run

    @classmethod
    def planned(cls, path: Path, recipe: Recipe, source: Path | None = None, *, replace: bool = False) -> "RunDir":
        """The run as ``create`` would leave it, to be looked at; nothing is written.

        Raises:
            RunError: the place holds something that is not a run, or the run of another recipe file.
        """
        run = cls(path)
        run._holds(recipe, source, replace)
        run._planned = recipe
        run.target = path if run.recipe_file.exists() or source is None else source
        return run

    def _holds(self, recipe: Recipe, source: Path | None, replace: bool) -> bool:
        """Whether the directory is the run of this very recipe.

        Raises:
            RunError: it holds something that is not a run, or the run of another recipe file.
        """
        path, origin = self.path, _origin(source)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: is a file, expected a run directory", "choose another --out")
        if not self.recipe_file.exists():
            begun = {lock.LOCK, f".{self.recipe_file.name}.tmp"}  # what one that was killed at once has left
            if path.is_dir() and any(entry.name not in begun for entry in path.iterdir()):
                raise RunError(f"{path}: holds files but no recipe.yaml, so it is not a run", "choose another --out")
            return False
        known = self.manifest().recipe_source
        changed = self.recipe_file.read_text(encoding="utf-8") != dump_recipe(recipe)
        if changed and known != origin and not replace:
            raise RunError(
                f"{path}: is the run of {known or 'a recipe made in Python'}, {origin or 'this recipe'} differs",
                "choose another place with --out, or let it take this one over with --replace",
            )
        return not changed and known == origin and self.manifest_file.exists()

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run, to read; nothing is written.

        Raises:
            RunError: no such directory, or not a run.
        """
        run = cls(path)
        if not run.recipe_file.exists():
            raise RunError(f"{path}: no run here (no recipe.yaml)", "start one with: tunesmith run RECIPE")
        return run

    @contextmanager
    def writing(self) -> Generator[None, None, None]:
        """Hold the right to write within the block; may be nested. What a killed writer left half done is finished first.

        Raises:
            RunError: another process is writing.
        """
        if self._writing:
            self._writing += 1
            try:
                yield
            finally:
                self._writing -= 1
            return
        with lock.writing(self.path):
            self._writing = 1
            try:
                self._recover()
                yield
            finally:
                self._writing = 0

    def _recover(self) -> None:
        remove_leftovers(self.path)
        recover_directory(self.adapter)
        journal = finish_swap(self.export)
        if journal is not None:
            self.record("export", journal.inputs, self.files_below("export/"), time.time(), 0.0, 0)

    def tokens(self, part: str) -> Path:
        """Rendered rows of train or dev, a memory-mapped Arrow file."""
        return self.data / f"{part}.arrow"

    def recipe(self) -> Recipe:
        """The resolved recipe of this run."""
        return self._planned or load_recipe(self.recipe_file)

    def manifest(self) -> Manifest:
        """Where the run comes from; an empty one before the first stage.

        Raises:
            RunError: the file is torn.
        """
        return Manifest.read(self.manifest_file) if self.manifest_file.exists() else Manifest()

    def stages(self) -> dict[str, StageRecord]:
        """What is done, by stage name.

        Raises:
            RunError: the file is torn.
        """
        return dict(Stages.read(self.stages_file).stages) if self.stages_file.exists() else {}

    def record(
        self, stage: str, inputs: Parts, outputs: Iterable[str], began: float, seconds: float, peak_bytes: int
    ) -> StageRecord:
        """Write down a finished stage.

        Args:
            outputs: paths of files below the run directory.
            began: seconds since the epoch.
        """
        states: dict[str, FileState] = {}
        for name in outputs:
            flush(self.file(name))
            states[name] = file_state(self.file(name))
        at = datetime.datetime.fromtimestamp(began).astimezone().isoformat(timespec="seconds")
        entry = StageRecord(inputs=inputs, outputs=states, began=at, seconds=round(seconds, 2), peak_bytes=peak_bytes)
        Stages(stages={**self.stages(), stage: entry}).write(self.stages_file)
        if stage == "export":  # which was moved in by a journal, and is on record now
            forget_journal(self.export)
        return entry

    def forget(self, stage: str) -> None:
        """Take a stage's record away, so that it is made again."""
        Stages(stages={name: entry for name, entry in self.stages().items() if name != stage}).write(self.stages_file)

    def files_below(self, *names: str) -> list[str]:
        """The files that names stand for, as paths below the run directory: a name with a slash at its end is a folder.

        Names that begin with a dot are nobody's output.
        """
        files: list[str] = []
        for name in names:
            if not name.endswith("/"):
                files.append(name)
                continue
            for file in sorted((self.path / name).rglob("*")):
                relative = file.relative_to(self.path)
                if file.is_file() and not any(part.startswith(".") for part in relative.parts):
                    files.append(from_disk(relative.as_posix()))
        return files


def _origin(source: Path | None) -> str | None:
    return None if source is None else str(source.resolve())
