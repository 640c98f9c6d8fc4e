"""The verb runs: the runs of a folder beside each other, so that no experiment is made twice, the failed ones least of all.

A run is known by what its verdict follows from: the keys of its recipe, and the content of the files that they name, as the
stages wrote it down (``stages.json``). A path that differs while the content is the same is no difference. What a run is
called, who is told of it and how fast it computes is none either.

A directory that is no run, or a broken one, is named and passed over: one torn file must not hide the other forty.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tunesmith.errors import RunError, TunesmithError
from tunesmith.formatting import points, points_between
from tunesmith.pipeline import stage as stages
from tunesmith.pipeline.inputs import Inputs, Unknown
from tunesmith.pipeline.table import CHEAP_TRAIN_KEYS, table_of
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.events import read_events
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.events import StageEnd
from tunesmith.rundir.records.runs import ArmFigure, NotARun, Outcome, RunEntry, Runs, State
from tunesmith.rundir.records.stages import Parts, StageRecord
from tunesmith.tracking.trackers.facts import Value, flattened

logger = logging.getLogger(__name__)

PREVIOUS = "previous"
NO_DIFFERENCE = ("name", "report_to", "evaluate.batch_size", *CHEAP_TRAIN_KEYS)
LONGEST = 60  # letters of a value
ROWS, CONTENT = "data.path", " (content)"


@dataclass(frozen=True)
class _Experiment:
    """What a run's verdict follows from: its keys, and the content of what lies outside of the run."""

    keys: Mapping[str, Value]
    contents: Parts

    @property
    def rows(self) -> Parts:
        return {name: value for name, value in self.contents.items() if name.startswith(ROWS)}

    def changes(self, other: "_Experiment") -> list[str]:
        """Keys that differ in the other, and contents of files under names that are the same."""
        shared = {name for name in self.contents if name in other.contents}
        named = {ROWS if name.startswith(ROWS) else name.removesuffix(CONTENT) for name in shared}
        keys = [key for key in {**self.keys, **other.keys} if key not in NO_DIFFERENCE and key not in named]
        changes = [
            f"{key} {' -> '.join(_told_apart(self.keys.get(key), other.keys.get(key)))}"
            for key in keys
            if self.keys.get(key) != other.keys.get(key)
        ]
        others = [name for name in shared if not name.startswith(ROWS) and self.contents[name] != other.contents[name]]
        return changes + [f"{name} is another one" for name in sorted(others)]

    def has_rows_of(self, other: "_Experiment") -> bool | None:
        return self.rows == other.rows if self.rows and other.rows else None

    def is_same(self, other: "_Experiment") -> bool:
        return bool(self.has_rows_of(other)) and not self.changes(other)


def compare(folder: Path, against: str = PREVIOUS) -> Runs:
    """The runs of a folder, the oldest first.

    Args:
        against: the run that keys and rows are compared with, by its name; ``previous`` for the one that began before.

    Raises:
        RunError: no such folder, no run in it, or no run of that name.
    """
    directories = _directories(folder)
    entries: list[tuple[RunEntry, _Experiment]] = []
    others: list[NotARun] = []
    for directory in directories:
        try:
            run = RunDir.open(directory)
            recipe = run.recipe()
            entries.append((_entry(run, recipe), _experiment(recipe, _recorded(run.stages()))))
        except (TunesmithError, OSError) as error:
            no_run = not (directory / "recipe.yaml").exists()
            reason = "no recipe.yaml, so it is no run" if no_run else str(error).splitlines()[0]
            others.append(NotARun(path=str(directory), reason=reason))
    if not entries:
        broken = f"; {len(others)} directories are none" if others else ""
        raise RunError(f"{folder}: no run in it{broken}", "name the folder that holds run directories: tunesmith runs FOLDER")
    entries.sort(key=lambda pair: _when(pair[0]))
    names = [entry.name for entry, _ in entries]
    if against != PREVIOUS and against not in names:
        raise RunError(f"{folder}: no run {against} in it", f"runs: {', '.join(names)}")
    compared: list[RunEntry] = []
    for place, (entry, experiment) in enumerate(entries):
        reference = place - 1 if against == PREVIOUS else names.index(against)
        twin = next((earlier.name for earlier, other in entries[:place] if experiment.is_same(other)), None)
        if reference >= 0 and reference != place:
            known = entries[reference][1]
            changed, same = tuple(known.changes(experiment)), experiment.has_rows_of(known)
            entry = replace(entry, against=names[reference], changed=changed, same_data=same)
        compared.append(replace(entry, repeats=twin))
    return Runs(folder=str(folder), runs=tuple(compared), others=tuple(others))


def say_twin(run: RunDir) -> None:
    """Say in a line that a finished run beside this one had the same keys and rows, before it is made again."""
    finished = sorted(run.path.parent.glob("*/evaluation/verdict.json"))
    if not finished or run.verdict_file.exists():
        return
    recipe = run.recipe()
    try:
        mine = _experiment(recipe, _parts_now(run, recipe))
    except (TunesmithError, OSError):
        return  # the stage that reads it says what is wrong
    for verdict_file in finished:
        other = RunDir(verdict_file.parents[1])
        try:
            known = _recorded(other.stages())
            if {name: value for name, value in known.items() if name.startswith(ROWS)} != mine.rows:
                continue
            if not _experiment(other.recipe(), known).is_same(mine):
                continue
            verdict = Verdict.read(verdict_file)
        except (TunesmithError, OSError) as error:
            logger.debug(f"{other.path}: not compared: {error}")
            continue
        gain = f"{points(verdict.comparison.gain)} points ({points_between(verdict.comparison.low, verdict.comparison.high)})"
        logger.info(
            f"{other.path} is this experiment already, with the same keys and rows: {verdict.decision}, {gain} over "
            f"{verdict.best_prompt}; it is made again here"
        )
        return


def _directories(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder", "name the folder that holds run directories: tunesmith runs FOLDER")
    if (folder / "recipe.yaml").exists():
        raise RunError(f"{folder}: is a run itself", f"its folder is meant: tunesmith runs {folder.resolve().parent}")
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _recorded(records: Mapping[str, StageRecord]) -> Parts:
    """What the stages wrote down of rows and files outside of the run."""
    return _outside({name: value for record in records.values() for name, value in record.inputs.items()})


def _parts_now(run: RunDir, recipe: Recipe) -> Parts:
    """The same of a run that is yet to be made."""
    read = Inputs(run, recipe)
    documents = read.source("data.documents (content)", recipe.data.documents)
    return _outside({**read.rows(f"{ROWS}{CONTENT}"), **read.scoring(), **read.model(), **documents})


def _outside(parts: Parts) -> Parts:
    known = {name: value for name, value in parts.items() if not isinstance(value, Unknown)}
    return {name: value for name, value in known.items() if name.startswith(ROWS) or name.endswith(CONTENT)}


def _experiment(recipe: Recipe, contents: Parts) -> _Experiment:
    return _Experiment(flattened(recipe.model_dump(mode="json")), contents)


def _entry(run: RunDir, recipe: Recipe) -> RunEntry:
    records = run.stages()
    state, why = _state(run, recipe)
    rows = {name: value for name, value in _recorded(records).items() if name.startswith(ROWS)}
    return RunEntry(
        name=run.path.name,
        path=str(run.path),
        model=recipe.model,
        metric=recipe.task.metric,
        data=fingerprint(rows)[:8] if rows else None,
        state=state,
        why=why,
        outcome=_outcome(Verdict.read(run.verdict_file)) if run.verdict_file.exists() else None,
        began=min((record.began for record in records.values()), default=None),
        seconds=round(sum(record.seconds for record in records.values()), 1),
    )


def _when(entry: RunEntry) -> tuple[float, str]:
    """When it began; one that did not begin stands last."""
    return (math.inf if entry.began is None else datetime.fromisoformat(entry.began).timestamp(), entry.name)


def _state(run: RunDir, recipe: Recipe) -> tuple[State, str]:
    """How a run stands, and why it is not done."""
    status = stages.status(run, table_of(recipe), recipe)
    if status.writer is not None:
        return "running", status.writer
    verdict = status["verdict"]
    if verdict.state == "done":
        return "done", ""
    missing = next(entry for entry in status.stages if entry.state != "done")
    why = f"{missing.stage}: {stages.reason(missing)}"
    if run.verdict_file.exists():
        return "outdated", why
    ends = [event for event in read_events(run.events_file) if isinstance(event, StageEnd) and "/" not in event.stage]
    if ends and ends[-1].outcome == "failed":
        return "failed", f"{ends[-1].stage}: {ends[-1].error.splitlines()[0] if ends[-1].error else 'failed'}"
    return "not finished", why


def _outcome(verdict: Verdict) -> Outcome:
    return Outcome(
        decision=verdict.decision,
        exit_code=verdict.exit_code,
        reason=verdict.reason,
        candidate=verdict.candidate,
        best_prompt=verdict.best_prompt,
        gain=verdict.comparison.gain,
        low=verdict.comparison.low,
        high=verdict.comparison.high,
        arms=tuple(ArmFigure(name=arm.name, score=arm.score, low=arm.low, high=arm.high) for arm in verdict.arms),
    )


def _told_apart(one: Value | None, other: Value | None) -> tuple[str, str]:
    """Two values in a line, so cut that they differ in what is left of them."""
    shown = _shown(one), _shown(other)
    if shown[0] != shown[1]:
        return shown
    first, second = str(one), str(other)
    shorter = min(len(first), len(second))
    same = next((n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), shorter)
    begin = max(0, min(same, shorter - LONGEST // 2))
    return _shown(f"...{first[begin:]}"), _shown(f"...{second[begin:]}")


def _shown(value: Value | None) -> str:
    """A value in a line; of a place on the disk its end, which is what tells two apart."""
    text = "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    if text.startswith("/"):
        return "/".join(("...", *Path(text).parts[-2:]))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
