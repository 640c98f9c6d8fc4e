"""A recipe file, read, checked and resolved.

Paths are relative to the recipe file, so that a recipe means the same wherever it is started from; the resolved recipe
holds absolute ones. ``model`` is a path if it ends in ``.gguf``, starts with ``.``, ``/`` or ``~``, or exists beside
the recipe; everything else is a hub id.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import JsonValue, ValidationError

from tunesmith.errors import RecipeError
from tunesmith.recipe.adapter import taken_over
from tunesmith.recipe.problems import problems
from tunesmith.recipe.run import Recipe
from tunesmith.recipe.section import Section
from tunesmith.recipe.task import Judge, Task
from tunesmith.recipe.yaml_text import parse_yaml

S = TypeVar("S", bound=Section)
FILE_SUFFIXES = {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst"}  # no hub id ends so


def load_recipe(path: Path) -> Recipe:
    """Read, check and resolve a recipe file.

    Returns:
        The recipe with absolute paths and a name.

    Raises:
        RecipeError: missing file, bad YAML, unknown key (with the nearest known one), value out of range.
    """
    if not path.exists():
        raise RecipeError(f"{path}: no such recipe", "give a YAML file, or a run directory made by an earlier command")
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}", "see recipes/ for complete examples") from error
    if not isinstance(raw, dict):
        kind = "an empty file" if raw is None else f"a {type(raw).__name__}"
        raise RecipeError(f"{path}: expected keys and values, found {kind}", "see recipes/ for complete examples")
    recipe = recipe_from(cast("dict[str, JsonValue]", raw), path.resolve().parent, str(path))
    return recipe if recipe.name else recipe.model_copy(update={"name": name_of(path.stem)})


def recipe_from(raw: Mapping[str, JsonValue], base: Path, where: str) -> Recipe:
    """Check and resolve the keys of a recipe.

    Args:
        raw: sections and keys, as in the file.
        base: the directory that relative paths start from.
        where: what an error calls its origin.

    Raises:
        RecipeError: unknown key (with the nearest known one), or a value out of range.
    """
    try:
        recipe = Recipe.model_validate(dict(raw))
    except ValidationError as error:
        raise RecipeError(*problems(where, error, Recipe)) from error
    return _resolved(recipe, base)


def section_from(section: type[S], settings: Mapping[str, Any], where: str) -> S:
    """Check the keys of one section of a recipe.

    Args:
        where: what an error calls their origin.

    Raises:
        RecipeError: unknown key (with the nearest known one), or a value out of range.
    """
    try:
        return section.model_validate(dict(settings))
    except ValidationError as error:
        raise RecipeError(*problems(where, error, section)) from error


def name_of(stem: str) -> str:
    """The name of a run whose recipe gives none: the file's, in the letters that a name may have."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:64] or "run"


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def yaml_line(key: str, value: object) -> str:
    """A key with its value as YAML on one line, for files with comments, which no library writes."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return f"{key}: {text.removesuffix(chr(10)).removesuffix('...').strip()}"


def json_schema() -> str:
    """JSON schema of a recipe, for editors that complete and check YAML."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


def _resolved(recipe: Recipe, base: Path) -> Recipe:
    if isinstance(recipe.data.path, str):
        source = _rows_place(base, recipe.data.path)
    else:
        source = tuple([rows.model_copy(update={"path": _rows_place(base, rows.path)}) for rows in recipe.data.path])
    earlier = recipe.data.earlier_split
    documents = recipe.data.documents
    trained_on = recipe.data.trained_on
    places = {"earlier_split": earlier and _absolute(base, earlier), "documents": documents and _absolute(base, documents)}
    places["trained_on"] = trained_on and _absolute(base, trained_on)
    data = recipe.data.model_copy(update={"path": source, **places})
    template = recipe.chat.template
    if template is not None and not is_shipped_name(template):
        template = _absolute(base, template)
    chat = recipe.chat.model_copy(update={"template": template})
    task = _task_paths(base, recipe.task)
    model = model_place(base, recipe.model)
    forgetting = recipe.evaluate.forgetting
    probes = {"texts": forgetting.texts, "tasks_path": forgetting.tasks_path}
    changes = {key: place and _absolute(base, place) for key, place in probes.items()}
    evaluate = recipe.evaluate.model_copy(update={"forgetting": forgetting.model_copy(update=changes)})
    embedder = evaluate.retrieval.embedder
    if embedder is not None and _is_path(base, embedder):
        retrieval = evaluate.retrieval.model_copy(update={"embedder": str(_absolute(base, Path(embedder)))})
        evaluate = evaluate.model_copy(update={"retrieval": retrieval})
    tuned = tuple([one.resolved(lambda place: _absolute(base, place)) for one in recipe.tuned])
    changed: dict[str, object] = {"data": data, "chat": chat, "task": task, "model": model}
    changed |= {"tuned": tuned, "evaluate": evaluate}
    if recipe.train.from_adapter is not None:
        adapter = _absolute(base, recipe.train.from_adapter)
        changed["train"] = recipe.train.model_copy(update={"from_adapter": adapter})
        changed["lora"] = taken_over(recipe.lora, adapter)
    return recipe.model_copy(update=changed)


def model_place(base: Path, model: str) -> str:
    """A model as the resolved recipe names it: a path as an absolute one, a hub id as it is.

    Args:
        base: the directory that relative paths start from.
    """
    return str(_absolute(base, Path(model))) if model.endswith(".gguf") or _is_path(base, model) else model


def _rows_place(base: Path, source: str) -> str:
    """A path of rows as an absolute one; a hub id as it is."""
    is_file = source.count("/") != 1 or Path(source).suffix in FILE_SUFFIXES
    if is_file or _is_path(base, source) or is_below_folder(base, source):
        return str(_absolute(base, Path(source)))
    return source


def _task_paths(base: Path, task: Task) -> Task:
    changes: dict[str, Path | str | Judge] = {}
    for key, place in (("json_schema", task.json_schema), ("tests", task.tests)):
        if place is not None:
            changes[key] = _absolute(base, place)
    if task.function is not None:
        file, _, name = task.function.rpartition(":")
        changes["function"] = f"{_absolute(base, Path(file))}:{name}"
    if task.judge.human_labels is not None:
        changes["judge"] = task.judge.model_copy(update={"human_labels": _absolute(base, task.judge.human_labels)})
    return task.model_copy(update=changes)


def is_shipped_name(template: Path) -> bool:
    """Whether ``chat.template`` names a template that tunesmith brings (no suffix, no folder) rather than a file."""
    return not template.suffix and len(template.parts) == 1


def is_below_folder(base: Path, name: str) -> bool:
    """Whether ``folder/rows`` means a place in a folder that is there, and no hub id; with a split it is always one."""
    return ":" not in name and (base / name).parent.is_dir()


def _is_path(base: Path, name: str) -> bool:
    """Whether a name that could be a hub id is a place on the disk."""
    return name[:1] in {".", "/", "~"} or (base / name).exists()


def _absolute(base: Path, path: Path) -> Path:
    path = path.expanduser()
    return path if path.is_absolute() else (base / path).resolve()
