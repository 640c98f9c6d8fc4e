"""Another tool's configuration as a recipe: its keys are translated, its rows are read, and a commented file is written.

The rule: a recipe is written when every key that changes what is trained has its place. A key that has none is refused by
name, and then nothing is written; whoever wants to do without it says so (``without``), and the recipe says it as well.
Refused: writing what can be written and warning of the rest, which nobody reads.

The rows are needed: steps, warm-up and the metric follow from them. Their tokens are counted with the model's own template
where the model is on this machine, else estimated from their characters, and it is said which.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import yaml
from pydantic import JsonValue

from tunesmith.chat.template_choice import shipped_names
from tunesmith.checkpoints.content import model_at_hand
from tunesmith.data.parts import is_split
from tunesmith.data.propose import proposals
from tunesmith.data.quality import wrong_lines
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.data.source import find, find_all, is_hub_id
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.peers.course import Counted, walks
from tunesmith.peers.table import NAMES, Tool, read_values, translated
from tunesmith.peers.translation import NamedRows, Translation
from tunesmith.peers.write import nested, recipe_text, settings_of
from tunesmith.pipeline.check import Check
from tunesmith.pipeline.init import Answers, first_that_fits, named_from
from tunesmith.pipeline.lines import reading_lines
from tunesmith.pipeline.reading import with_bar
from tunesmith.pipeline.stage import module_of
from tunesmith.recipe import load_recipe, recipe_from
from tunesmith.recipe.metrics import METRIC_KEYS
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.records.imported import Course, Imported
from tunesmith.rundir.rows import Row

CHARACTERS, AROUND = 4, 8  # of a token, about; tokens that a template writes around a turn
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What somebody says beside a configuration.

    Attributes:
        tool: that it was written for; None to tell it from its keys.
        data: rows in the place of those that it names.
        options: how the rows are read.
        metric: how answers are scored; None to propose one from them.
        task: more keys of the recipe's section ``task``.
        settings: keys of the tool with values that take the place of those in the file.
        without: refused keys to leave out.
        gpus: devices that trained there.
        out: the recipe to write; by default the configuration's name with ``.yaml``, here.
    """

    tool: Tool | None = None
    data: str | None = None
    options: ReadOptions = AS_FOUND
    metric: str | None = None
    task: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    settings: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    without: Sequence[str] = ()
    gpus: int = 1
    out: Path | None = None


AS_WRITTEN = Wishes()


def import_config(path: Path, wishes: Wishes = AS_WRITTEN) -> Imported:
    """Translate a configuration and write a recipe, unless a key is refused.

    Args:
        path: YAML, JSON, a notebook or a script.

    Raises:
        RecipeError: no such file, no tool that it could be of, a file where the recipe would be written, or a value that no
            recipe takes.
    """
    out = wishes.out or Path(f"{path.stem}-recipe.yaml" if Path(f"{path.stem}.yaml").exists() else f"{path.stem}.yaml")
    if out.exists():
        raise RecipeError(f"{out}: there is already a file", "name another one with --out, or remove it")
    tool, values, computed = read_values(path, wishes.tool)
    given = {**values, **wishes.settings}
    still = {key: text for key, text in computed.items() if key not in wishes.settings}
    t = translated(path, tool, given, still, wishes.without, tuple(shipped_names()), wishes.data is not None)
    _refuse_needless(t, wishes)
    _place_paths(t, path, out)
    source = _named_rows(t, path, wishes)
    counted, walked = (None, None) if source is None else _looked_at(t, source, out, wishes)
    _task(t, wishes)
    result = Imported(
        source=str(path),
        tool=NAMES[tool],
        recipe=str(out),
        keys=tuple(t.keys),
        differs=tuple(t.differs),
        before=None if walked is None else walked[0],
        after=None if walked is None else walked[1],
        tokens="" if counted is None else counted.how,
        too_long=0 if counted is None else counted.too_long,
    )
    if result.refused:
        return replace(result, recipe=None)
    recipe_from(nested(settings_of(t.keys)), out.resolve().parent, str(path))
    write_text(out, recipe_text(path.name, NAMES[tool], t.keys, t.differs))
    load_recipe(out)
    return result


def _refuse_needless(t: Translation, wishes: Wishes) -> None:
    refused = {key.key for key in t.keys if key.kind == "refused" and not key.final}
    for key in wishes.without:
        if key not in refused:
            named = f"refused keys that can be left out: {', '.join(sorted(refused)) or 'none'}"
            raise RecipeError(f"--without {key}: no refused key of that name that can be left out", named)


def _place_paths(t: Translation, config: Path, out: Path) -> None:
    """Name the model and the template, where they are files, as a recipe at ``out`` names them."""
    for number, key in enumerate(t.keys):
        named = key.our_value
        if key.ours in ("model", "chat.template") and isinstance(named, str) and not Path(named).is_absolute():
            place = _file(named, config)
            t.keys[number] = key if place is None else replace(key, our_value=named_from(out, str(place)))


@dataclass(frozen=True)
class _Rows:
    """Where the rows are, and how they are read."""

    paths: tuple[str, ...]
    options: ReadOptions
    key: str
    named: tuple[NamedRows, ...] = ()


def _named_rows(t: Translation, config: Path, wishes: Wishes) -> _Rows | None:
    """The rows of the wish or of the configuration; None where they are refused."""
    if wishes.data is not None:
        return _Rows((wishes.data,), wishes.options, "--data")
    if not t.rows:
        if not any(key.final and "data" in key.key for key in t.keys):
            t.refuse("(rows)", "no rows are named", "--data DATA names a file, a directory or a hub id", final=True)
        return None
    columns = {name: column for rows in t.rows for name, column in rows.columns.items()}
    formats = {rows.format for rows in t.rows}
    if len(t.rows) > 1 and (columns or len(formats) > 1):
        t.refuse(
            t.rows[0].key,
            "several data sets of different columns",
            "tunesmith convert makes one form of them; then --data",
            final=True,
        )
        return None
    paths: list[str] = []
    for rows in t.rows:
        place = _place(rows, config)
        if place is None:
            words = f"{rows.path}: no such file, looked for from here and beside {config.name}, and no hub id"
            t.refuse(rows.key, words, "--data DATA names the rows", final=True)
            return None
        paths.append(place)
    options = wishes.options
    if options == AS_FOUND:
        options = replace(options, columns=columns or None)
    return _Rows(tuple(paths), options, t.rows[0].key, tuple(t.rows))


def _place(rows: NamedRows, config: Path) -> str | None:
    """A path as it can be opened from here, or a hub id with its split."""
    if (place := _file(rows.path, config)) is not None:
        return str(place)
    named = ":".join([rows.path, *([rows.config] if rows.config else []), *([rows.split or "train"] if rows.config else [])])
    if rows.split and not rows.config:
        named = f"{rows.path}:{rows.split}"
    return named if is_hub_id(named) else None


def _file(named: str, config: Path) -> Path | None:
    """A file or directory that is named, from here or from beside the configuration."""
    places = (Path(named).expanduser(), config.resolve().parent / named) if named else ()
    try:
        return next((place for place in places if place.exists()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _looked_at(t: Translation, source: _Rows, out: Path, wishes: Wishes) -> tuple[Counted | None, tuple[Course, Course] | None]:
    """Read the rows; the keys that follow from them are added."""
    try:
        found = find(source.paths[0]) if len(source.paths) == 1 else find_all(source.paths)
        reader = Reader(found, source.options)
        look = _Look(t, reader, out.resolve().parent)
        for batch in with_bar(reader):
            look.add(batch)
        report = look.checks.report()
        for line in (*reading_lines(report.reading), *wrong_lines(report.quality.findings)):
            logger.info(line)
        metric, labels, reason = wishes.metric, None, "as --metric says"
        if metric is None:
            suitable = proposals(report.quality, look.answers.labels(source.key, report.reading), look.answers.calls)
            proposal, _ = first_that_fits(reader, suitable)
            metric, labels, reason = proposal.metric, proposal.labels, proposal.reason
        elif metric in METRIC_KEYS and "labels" in METRIC_KEYS[metric].needs:
            labels = look.answers.labels(source.key, report.reading)
    except (DataError, ModelError) as error:
        t.refuse(source.key, error.message, f"{error.hint}; or --data DATA names other rows", final=True)
        return None, None
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        hint = "pip install 'tunesmith[hub]' reads them; --data DATA names rows that are here"
        t.refuse(source.key, f"{source.paths[0]}: rows of the hub, and the package datasets is not installed", hint, final=True)
        return None, None
    given = is_split(part for part, _ in reader.source.named_parts)
    counted = look.counted(given)
    _data_keys(t, source, out, counted, given)
    t.default("task", "task.metric", metric, reason)
    if labels is not None:
        t.default("task", "task.labels", [*labels], "the different answers of these rows")
    return counted, walks(t, counted, wishes.gpus)


class _Look:
    """What is seen of the rows: a check, their answers, their tokens."""

    def __init__(self, t: Translation, reader: Reader, base: Path):
        self._limit = t.walk.max_length
        named, revision, template = str(t.ours("model") or ""), t.ours("revision"), t.ours("chat.template")
        model = str(base / named) if named and (base / named).exists() else named
        self._tokens = None
        self.how = f"estimated at {CHARACTERS} characters a token, since {named or 'the model'} is not on this machine"
        if _is_here(model, revision):
            file = base / str(template) if (base / str(template)).is_file() else Path(str(template))
            self._tokens = module_of("check_tokens").tokens_of(model, None if template is None else file, None)
            self.how = f"with the template of {named}"
        self.checks, self.answers = Check(reader, near=False), Answers()
        self._rows = self._total = self._long = self._longest = 0

    def add(self, batch: list[Row]) -> None:
        """Look at a batch."""
        self.checks.add(batch)
        self.answers.add(batch)
        sizes = [(_estimated(row), 0) for row in batch] if self._tokens is None else self._tokens.sizes_of(batch)
        lengths = [tokens for tokens, _ in sizes]
        self._rows += len(batch)
        self._total += sum(lengths)
        self._longest = max(self._longest, *lengths, 0)
        self._long += sum(length > self._limit for length in lengths) if self._limit else 0

    def counted(self, given: bool) -> Counted:
        """The figures, after the last batch."""
        return Counted(
            rows=self._rows,
            tokens=max(self._rows, self._total),
            too_long=self._long,
            longest=self._longest,
            how=self.how,
            given=given,
        )


def _is_here(model: str, revision: JsonValue) -> bool:
    """Whether a model's tokenizer can be opened without fetching anything."""
    path = Path(model)
    if not model or path.exists():
        return path.suffix == ".gguf" or (path / "config.json").is_file()
    try:
        return isinstance(model_at_hand(model, None if revision is None else str(revision)), Path)
    except ModelError:
        return False


def _estimated(row: Row) -> int:
    characters = sum(len(str(message.get("content") or "")) for message in row.messages)
    return characters // CHARACTERS + AROUND * len(row.messages)


def _data_keys(t: Translation, source: _Rows, out: Path, counted: Counted, given: bool) -> None:
    """The section ``data``, from what was read."""
    paths = [named_from(out, path) for path in source.paths]
    counts = [_first(rows, counted.rows) for rows in source.named] if source.named else [None]
    if len(paths) == 1:
        t.map(source.key, "data.path", paths[0])
        if counts[0] is not None:
            t.map(f"{source.key} (a part)", "data.limit", counts[0], f"of {counted.rows:,} rows")
    else:
        entries: list[JsonValue] = []
        for path, count in zip(paths, counts, strict=True):
            entries.append(path if count is None else {"path": path, "count": count})
        t.map("datasets", "data.path", entries, "each is read whole, or as many of its rows")
    options = source.options
    if options.format is not None:
        t.map("--format", "data.format", options.format)
    if options.columns is not None:
        t.map(f"{source.key} (columns)", "data.columns", dict(options.columns))
    if given:
        t.default("(none)", "data.split", "given", "the files bring their own parts; drawn would put all rows together")


def _first(rows: NamedRows, total: int) -> int | None:
    """How many rows of a data set are read, where it is a part of them."""
    if rows.share is not None:
        return max(1, round(rows.share * total))
    return rows.first if rows.first is not None and rows.first < total else None


def _task(t: Translation, wishes: Wishes) -> None:
    for key, value in wishes.task.items():
        t.default("--task", f"task.{key}", value, "as --task says")


def setting(text: str) -> JsonValue:
    """The value of a setting as YAML reads it.

    Raises:
        RecipeError: it is no YAML.
    """
    try:
        return cast("JsonValue", yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"{text}: cannot be read as YAML: {error}", "quote it") from error
