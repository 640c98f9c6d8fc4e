"""Paths and bookkeeping of one run."""

from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.recipe import Recipe, dump_recipe, load_recipe
from tunesmith.rundir.atomic import read_json, recover_directory, write_json, write_text
from tunesmith.rundir.swap import finish_swap, forget_journal


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
        self.training_file = path / "training.json"
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
        manifest: dict[str, Any] = read_json(self.manifest_file) if self.manifest_file.exists() else {}
        write_json(self.manifest_file, {**manifest, **facts})
