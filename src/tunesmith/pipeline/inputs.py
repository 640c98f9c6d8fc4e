"""What stages are made from, read without torch: recipe keys, files of the run, files outside, the base model.

A part has the name by which a person knows it: ``train.learning_rate``, ``data/train.arrow``, ``task.json_schema (content)``.
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import JsonValue

from tunesmith.checkpoints.content import content_key
from tunesmith.errors import ModelError
from tunesmith.recipe import Recipe, is_shipped_name
from tunesmith.recipe.adapter import CONFIG, WEIGHTS
from tunesmith.recipe.tuned import TUNED_OF
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.hashes import content_hash, file_state
from tunesmith.rundir.records.choice import Choice
from tunesmith.rundir.records.stages import Parts, StageRecord

DECIDING = ("task.min_gain", "task.certainty", "task.min_score")  # what a verdict asks, and no score follows from


class MissingInput(Exception):
    """A file that another stage makes is not there.

    Args:
        name: its path below the run directory.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class Unknown(str):
    """The value of a part whose source is gone, so that it can be compared with nothing; its text says what is gone."""


class Inputs:
    """Reads the parts of a stage of a run."""

    def __init__(self, run: RunDir, recipe: Recipe):
        self.run = run
        self.recipe = recipe
        self._settings: dict[str, JsonValue] = recipe.model_dump(mode="json")
        self._records: dict[str, StageRecord] | None = None

    def keys(self, *names: str, without: Iterable[str] = ()) -> Parts:
        """Recipe keys with their values; a section stands for all keys below it.

        Args:
            without: dotted keys, or sections, that the stage does not read.
        """
        left_out = tuple(without)
        parts: Parts = {}
        for name in names:
            value: JsonValue = self._settings
            for step in name.split("."):
                assert isinstance(value, dict), name
                value = value[step]
            _flatten(name, value, parts)
        return {
            name: value
            for name, value in parts.items()
            if not any(name == other or name.startswith(f"{other}.") for other in left_out)
        }

    def files(self, *names: str) -> Parts:
        """Hashes of files that earlier stages made.

        Raises:
            MissingInput: one is not there.
        """
        if self._records is None:
            self._records = self.run.stages()
        known = {name: state for record in self._records.values() for name, state in record.outputs.items()}
        parts: Parts = {}
        for name in names:
            try:
                parts[name] = file_state(self.run.file(name), known.get(name)).sha256
            except OSError as error:
                raise MissingInput(name) from error
        return parts

    def present(self, *names: str) -> Parts:
        """The same, of those that are there."""
        return self.files(*(name for name in names if self.run.file(name).is_file()))

    def source(self, label: str, path: Path | None) -> Parts:
        """The content of a file outside of the run, or of a directory's files; nothing where the recipe names none."""
        if path is None:
            return {}
        if path.is_file():
            return {label: content_hash(path)}
        if path.is_dir():
            return {label: fingerprint(sorted(content_hash(file) for file in path.rglob("*") if file.is_file()))}
        return {label: Unknown(f"{path} is gone")}

    def first_adapter(self) -> Parts:
        """The content of the adapter that training goes on from; nothing where it begins a new one."""
        directory = self.recipe.train.from_adapter
        if directory is None:
            return {}
        try:
            content: JsonValue = fingerprint([content_hash(directory / name) for name in (CONFIG, WEIGHTS)])
        except OSError:
            content = Unknown(f"{directory} is gone")
        return {"train.from_adapter (content)": content}

    def rows(self, label: str) -> Parts:
        """The content of the rows, wherever they lie; a hub id by its name."""
        if isinstance(self.recipe.data.path, str):
            return self._rows_at(label, "data.path", self.recipe.data.path)
        parts: Parts = {}
        for number, rows in enumerate(self.recipe.data.path):
            name = f"data.path.{number}"
            parts |= self._rows_at(f"{name} (content)", name, rows.path)
            parts |= {f"{name}.count": rows.count, f"{name}.weight": rows.weight}
        return parts

    def _rows_at(self, label: str, name: str, path: str) -> Parts:
        return self.source(label, Path(path)) if Path(path).is_absolute() else {name: path}

    def model(self) -> Parts:
        """The content of the base model and of what takes its template's place."""
        recipe = self.recipe
        parts: Parts = {**self.keys("chat.enable_thinking"), **self.keys("chat.new_tokens")}
        if recipe.max_position_embeddings is not None:
            parts |= self.keys("max_position_embeddings", "rope_theta")
        try:
            parts["model (content)"] = content_key(recipe.model, recipe.revision)
        except (ModelError, OSError) as error:
            parts["model (content)"] = Unknown(str(error))
        template = recipe.chat.template
        if template is not None and is_shipped_name(template):
            parts["chat.template"] = str(template)
        return {**parts, **self.source("chat.template (content)", None if "chat.template" in parts else template)}

    def brought(self) -> Parts:
        """The tuned models that are brought: what each is, and its content."""
        parts: Parts = {}
        for number, one in enumerate(self.recipe.tuned):
            name = f"tuned.{number}"
            parts |= {f"{name}.name": one.label, f"{name}.kind": one.kind}
            if one.endpoint is not None:
                parts |= {f"{name}.endpoint": one.endpoint, f"{name}.model": one.model}
                continue
            try:
                parts[f"{name} (content)"] = content_key(str(one.place))
            except (ModelError, OSError) as error:
                parts[f"{name} (content)"] = Unknown(str(error))
        return parts

    def chosen(self) -> Parts:
        """Which of several tuned models is deployed, and its content.

        Raises:
            MissingInput: it was not chosen yet.
        """
        choice = self.choice()
        label = choice.name.removeprefix(TUNED_OF)
        own = self.files(f"brought/{label}.jinja", *self.run.files_below(f"brought/{label}/"))
        return {"the chosen tuned model": label, "the chosen tuned model (content)": choice.key, **own}

    def choice(self) -> Choice:
        """What chose it.

        Raises:
            MissingInput: it was not chosen yet.
        """
        file = self.run.choice_file
        if not file.is_file():
            raise MissingInput(file.relative_to(self.run.path).as_posix())
        return Choice.read(file)

    def scoring(self) -> Parts:
        """What decides a score: the metric's keys, and the content of its files."""
        task = self.recipe.task
        function = None if task.function is None else Path(task.function.rpartition(":")[0])
        other = ("task.prompt", "task.short_prompt", "task.max_new_tokens", "task.allow_code", *DECIDING)
        return {
            **self.keys("task", without=(*other, "task.json_schema", "task.tests", "task.judge.human_labels")),
            **self.source("task.json_schema (content)", task.json_schema),
            **self.source("task.tests (content)", task.tests),
            **self.source("task.function (content)", function),
            **self.source("task.judge.human_labels (content)", task.judge.human_labels),
        }

    def base_in_memory(self) -> Parts:
        """The base model, how it is held, and in what it computes."""
        held = self.keys("base", "train.compute", "per_layer_embeddings", "base_head")
        return {**self.model(), **held, **self.base_forms()}

    def base_forms(self) -> Parts:
        """What each module of the base is kept in, where that is chosen."""
        return {} if self.recipe.base_budget is None else self.files("data/base.json", "data/base_sensitivity.safetensors")


def _flatten(name: str, value: JsonValue, parts: Parts) -> None:
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            _flatten(f"{name}.{key}", entry, parts)
    else:
        parts[name] = value
