"""``class Run``: a run for Python and notebooks, the same directory that the command line works in.

Each method is a command; it returns the record that the command shows, or the run itself where the next step follows. What a
method needs is made on the way, with the reason said; errors are ours and never pydantic's. Nothing here imports torch until a
method needs it.

    run = ts.Run("support", model="org/instruct", data="rows.jsonl", metric="exact_match")
    print(run.train().evaluate().verdict())

Refused: a second way to configure (keyword arguments for everything); sections of a recipe are given as in its YAML.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.memory import Rows, rows_in_memory
from tunesmith.errors import RecipeError, RunError
from tunesmith.pipeline import provenance, verbs
from tunesmith.recipe import Recipe, recipe_from
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.advice import Advice
from tunesmith.rundir.records.answers import Output, Outputs
from tunesmith.rundir.records.check import CheckReport
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.export import Export
from tunesmith.rundir.records.parity import Parity
from tunesmith.rundir.records.provenance import Verification
from tunesmith.rundir.records.stages import Status
from tunesmith.rundir.records.training import Training

ROWS = "rows"  # the file, below the run directory, of rows that were given as objects


class Run:
    """A run.

    Args:
        name: of the run; its directory is ``runs/<name>``.
        model: hub id, directory or ``.gguf`` file.
        data: path or hub id; or rows in memory as ``ts.check`` takes them, which are written into the run directory.
        metric: how an answer is scored (``task.metric``).
        out: another directory.
        sections: of the recipe, as in its YAML: ``train={"num_train_epochs": 3}``.

    Raises:
        RecipeError: an unknown key, or a value out of range.
        RunError: the directory holds something that is not a run.
        DataError: rows in memory that are none, or that no file can hold.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str | Path,
        data: Rows,
        metric: str = "exact_match",
        out: str | Path | None = None,
        **sections: Any,
    ):
        if not isinstance(model, str | Path):
            raise RecipeError(f"Run: model: expected a hub id or a path, found {model!r:.80}", 'such as model="org/instruct"')
        directory = Path(out) if out is not None else Path("runs") / name
        task = {"metric": metric, **sections.pop("task", {})}
        memory = None if isinstance(data, str | Path) else rows_in_memory(data)
        source = str(data) if memory is None else str(directory.resolve() / f"{ROWS}{memory.suffix}")
        raw = {"name": name, "model": str(model), "data": {"path": source}, "task": task, **sections}
        recipe = recipe_from(raw, Path.cwd(), "Run")
        if memory is not None:
            memory.refuse_bad()
        self.directory = RunDir.create(directory, recipe, replace=True)
        if memory is not None:
            with self.directory.writing():
                memory.write(Path(source))

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """The run of a directory that is there.

        Raises:
            RunError: no run there.
        """
        run = cls.__new__(cls)
        run.directory = RunDir.open(Path(path))
        return run

    @classmethod
    def of_recipe(cls, path: str | Path, out: str | Path | None = None, *, replace: bool = False) -> "Run":
        """The run of a recipe file.

        Raises:
            RecipeError: the file cannot be read, or a key is wrong.
            RunError: the directory holds the run of another recipe.
        """
        run = cls.__new__(cls)
        run.directory = verbs.open_run(path, out, replace=replace)
        return run

    def __repr__(self) -> str:
        states = self.status().stages
        done = [state.stage for state in states if state.state == "done"]
        return f"Run({str(self.path)!r}: {len(done)} of {len(states)} stages done)"

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.directory.recipe()

    def set(self, **keys: Any) -> "Run":
        """Change keys of the recipe; the stages that read them are stale. A key is named by its last part where one key ends
        so.

        Raises:
            RecipeError: no such key, several of that name, or a value out of range.
        """
        raw = self.recipe.model_dump(mode="json")
        for name, value in keys.items():
            places = [path for path in _leaves(raw) if ".".join(path) == name.replace("__", ".") or path[-1] == name]
            if not places:
                near = difflib.get_close_matches(name, [path[-1] for path in _leaves(raw)], n=1)
                raise RecipeError(
                    f"set: unknown key {name}", f"did you mean {near[0]}?" if near else "tunesmith schema prints every key"
                )
            if len(places) > 1:
                names = ", ".join(".".join(path) for path in places)
                hint = f"write its section too: {'__'.join(places[0])}"
                raise RecipeError(f"set: {name}: several keys have that name: {names}", hint)
            section: Any = raw
            for step in places[0][:-1]:
                section = section[step]
            section[places[0][-1]] = value
        recipe = recipe_from(raw, Path.cwd(), "set")
        RunDir.create(self.path, recipe, replace=True)
        return self

    def check(self, *, near: bool = True) -> CheckReport:
        """Look at the rows, rendered with the model's template; nothing is written.

        Args:
            near: search for near duplicates.

        Raises:
            DataError: nothing to read, or bad rows that are not to be quarantined.
        """
        return verbs.check(self.directory, near=near)

    def advise(self, quick: bool = False) -> Advice:
        """Whether to tune at all, before any training."""
        return verbs.advise(self.directory, quick)

    def train(self) -> "Run":
        """Train the adapter; ``training`` holds what came out."""
        verbs.make(self.directory, ["train"], all_needed=True)
        return self

    @property
    def training(self) -> Training:
        """What was trained.

        Raises:
            RunError: nothing was.
        """
        if not self.directory.training_file.exists():
            raise RunError(f"{self.path}: nothing was trained", "run.train()")
        return Training.read(self.directory.training_file)

    def evaluate(self, *arms: str) -> "Run":
        """Score arms on the sealed test part, all of the recipe's when not named, and make what they need."""
        names = [f"evaluate {arm}" for arm in arms] or ["evaluate"]
        verbs.make(self.directory, names, all_needed=True)
        return self

    def verdict(self) -> Verdict:
        """Decide, and make what the decision needs."""
        verbs.make(self.directory, ["verdict"], all_needed=True)
        return Verdict.read(self.directory.verdict_file)

    def export(self, gguf: str | Iterable[str] | None = None) -> Export:
        """Write the forms that are deployed.

        Args:
            gguf: llama.cpp file types in place of the recipe's; the last one is the deployed arm.
        """
        if gguf is not None:
            self.set(gguf=[gguf] if isinstance(gguf, str) else list(gguf))
        verbs.make(self.directory, ["export"], all_needed=True)
        return Export.read(self.directory.export / "export.json")

    def parity(self) -> Parity:
        """Hold every exported form against what was trained."""
        verbs.make(self.directory, ["parity"], all_needed=True)
        return Parity.read(self.directory.export / "parity.json")

    def verify(self) -> Verification:
        """Hash every file that the verdict speaks of; nothing is written. What is another one stands in the record.

        Raises:
            RunError: there is no verdict, or it is damaged.
            ProvenanceError: it names no file.
        """
        return provenance.verify(self.directory)

    def run(self) -> Verdict:
        """All stages, to the page; returns the verdict."""
        verbs.make(self.directory, ["report"], all_needed=True)
        return Verdict.read(self.directory.verdict_file)

    def status(self) -> Status:
        """How every stage stands; nothing is written."""
        return verbs.status(self.directory)

    def outputs(self, arm: str) -> Outputs:
        """What an arm answered, row by row.

        Raises:
            RunError: no such arm, or it was not scored.
        """
        file = self.directory.answers(arm) / "outputs.jsonl"
        if not file.exists():
            arms = self.recipe.evaluate.arms
            if arm not in arms:
                raise RunError(f"{self.path}: no arm {arm} in evaluate.arms", f"arms: {', '.join(arms)}")
            raise RunError(f"{self.path}: the arm {arm} was not scored", f"run.evaluate({arm!r})")
        return Outputs(Output.read_lines(file))

    def chat(self, message: str) -> str:
        """The tuned model's answer to one message.

        Raises:
            RunError: nothing was trained, or from another recipe.
        """
        return verbs.chat(self.directory)([{"role": "user", "content": message}])["tuned"]


def _leaves(section: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)
