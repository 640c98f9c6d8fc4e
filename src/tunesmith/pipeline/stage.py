"""What a stage is, when it is done, and how a plan of stages is carried out.

A stage is data: its name, the stages whose files it reads, its inputs by name, its outputs by path, and the file of this folder
that makes it. It is done while both are what was recorded in ``stages.json``: the inputs (recipe keys, hashes of files, the
content of the base) and the outputs (every file, by its hash). So a changed recipe makes exactly the stages again that read the
changed key, an adapter that somebody replaced is not evaluated under the old verdict, and the reason can be told.

Two ways to go on where something is not done:

- ``run`` makes everything again that is needed, in order, and says why.
- A single verb makes its own stage, and the cheap ones before it (``implied``) where they were never made. It refuses by name
  where an earlier stage was made from other inputs: what took hours is not thrown away by a verb that did not name it.

A source outside of the run (the rows, the base model) that is gone cannot have changed: what was made from it stands.

Refused: one fingerprint a stage, which cannot say what changed; the predecessor's fingerprint in place of its files, which
misses an altered file and makes a stage again whose predecessor came out the same; dvc or Snakemake, whose stages are
commands.
"""

import contextlib
import functools
import gc
import importlib
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, TypeVar

from tunesmith import hardware, tracking
from tunesmith.errors import RunError, raised_by_triton
from tunesmith.pipeline.inputs import Inputs, MissingInput, Unknown
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.atomic import full_disk_named
from tunesmith.rundir.hashes import file_state
from tunesmith.rundir.lock import writer_of
from tunesmith.rundir.records.stages import Parts, StageRecord, StageState, Status

logger = logging.getLogger(__name__)
Value = TypeVar("Value")
SHOWN = 3  # changed parts that a line names


class Session:
    """What consecutive stages of one kind share: a loaded base, open stores. Closed when another kind begins."""

    def __init__(self) -> None:
        self.closing = contextlib.ExitStack()
        self.parts: Parts = {}  # inputs of the stage that is being made
        self._values: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Value]) -> Value:
        """The value of a name, made when it is first asked for."""
        if name not in self._values:
            self._values[name] = make()
        return self._values[name]

    def close(self) -> None:
        """Close what was opened, forget the rest, and give its memory back: a model goes with the last that knows it."""
        self._values.clear()
        self.closing.close()
        gc.collect()
        hardware.release_freed_memory()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the table.

    Attributes:
        name: its key in ``stages.json``.
        module: file of this folder that makes it: ``execute(run, recipe, session, argument)``.
        about: what it does, for people.
        needs: stages whose outputs it reads.
        inputs: what it is made from, by name; must not import torch.
        outputs: paths below the run directory; one that ends with a slash stands for all files there.
        without: paths that the last rule would name, and that another stage makes.
        argument: what ``execute`` is told (an arm).
        verb: the command that makes it.
        implied: cheap, so a verb that needs it makes it where it was never made.
        asks_base: it reads the base model.
        form: of the outputs; raised where a newer version writes other files from the same inputs, and older ones do not do.
    """

    name: str
    module: str
    about: str
    inputs: Callable[[Inputs], Parts]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    argument: str = ""
    verb: str = ""
    implied: bool = False
    asks_base: bool = False
    form: int = 1

    def parts(self, run: RunDir, recipe: Recipe) -> Parts:
        """The inputs as they are now.

        Raises:
            MissingInput: a file of another stage is gone.
        """
        parts = self.inputs(Inputs(run, recipe))
        return parts if self.form == 1 else {**parts, "form of its files": self.form}

    def command(self, run: RunDir) -> str:
        """What to type to make it."""
        return f"tunesmith {self.verb or self.name} {shlex.quote(str(run.target))}"


@dataclass(frozen=True)
class Table:
    """The stages of a recipe in the order of a run."""

    stages: tuple[Stage, ...]
    _by_name: dict[str, Stage] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {stage.name: stage for stage in self.stages})

    def __getitem__(self, name: str) -> Stage:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def closure(self, goals: Iterable[str]) -> list[Stage]:
        """The goals and all that they need, in the order of the table."""
        names: set[str] = set()
        pending = list(goals)
        while pending:
            name = pending.pop()
            if name not in names:
                names.add(name)
                pending += self[name].needs
        return [stage for stage in self.stages if stage.name in names]


def state_of(run: RunDir, stage: Stage, recipe: Recipe, known: StageRecord | None) -> tuple[StageState, Parts | None]:
    """How a stage stands whose needs are done, and its inputs as they are now (None where a file of another stage is gone)."""
    seconds, peak_bytes = (None, None) if known is None else (known.seconds, known.peak_bytes)
    standing = functools.partial(StageState, stage=stage.name, seconds=seconds, peak_bytes=peak_bytes)
    try:
        parts = stage.parts(run, recipe)
    except MissingInput as missing:
        reason = f"{missing.name} is not there"
        return standing(state="never" if known is None else "waiting", why=(reason,)), None
    if known is None:
        return standing(state="never"), parts
    settled = {name: known.inputs.get(name) if isinstance(value, Unknown) else value for name, value in parts.items()}
    if changes := tuple(_changes(known.inputs, settled)):
        return standing(state="stale", why=changes), settled
    if broken := tuple(_broken(run, known)):
        return standing(state="broken", why=broken), settled
    return standing(state="done"), settled


def _changes(before: Parts, now: Parts) -> Iterator[str]:
    for name in {**now, **before}:
        old, new = before.get(name), now.get(name)
        if old == new and (name in before) == (name in now):
            continue
        if _is_short(old) and _is_short(new):
            yield f"{name} {_shown(old)} -> {_shown(new)}"
        else:
            yield f"{name} is another one"


def _is_short(value: object) -> bool:
    return not isinstance(value, str) or not (len(value) == 64 or len(value) > 60)


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _broken(run: RunDir, known: StageRecord) -> Iterator[str]:
    for name, state in known.outputs.items():
        path = run.file(name)
        if not path.is_file():
            yield f"{name} is gone"
        elif file_state(path, state).sha256 != state.sha256:
            yield f"{name} is not what was written"


def _remove_damaged(run: RunDir, known: StageRecord) -> None:
    """Remove what is there of a stage and is not what it wrote, so that no answer in it is taken for one that is known."""
    for name, state in known.outputs.items():
        path = run.path / name
        if path.is_file() and file_state(path, state).sha256 != state.sha256:
            path.unlink()


def reason(state: StageState) -> str:
    """Why a stage is not done, in one line."""
    if state.state == "never":
        return "was never made here" if not state.why else f"was never made here ({state.why[0]})"
    more = f" and {len(state.why) - SHOWN} more" if len(state.why) > SHOWN else ""
    return ", ".join(state.why[:SHOWN]) + more


def status(run: RunDir, table: Table, recipe: Recipe) -> Status:
    """Every stage of the table as it stands, in order; nothing is written and no torch imported."""
    records = run.stages()
    states: list[StageState] = []
    pending: set[str] = set()
    for stage in table.stages:
        known = records.get(stage.name)
        state, _ = state_of(run, stage, recipe, known)
        if waits_for := [name for name in stage.needs if name in pending]:
            why = f"after {', '.join(waits_for)}"
            if state.state in ("done", "waiting", "never"):
                state = replace(state, state="never" if known is None else "waiting", why=(why,))
        if state.state != "done":
            pending.add(stage.name)
        states.append(state)
    return Status(run=str(run.path), stages=tuple(states), writer=writer_of(run.path))


def make(run: RunDir, table: Table, recipe: Recipe, goals: Iterable[str], *, all_needed: bool = False) -> None:
    """Make the goals where they are not done.

    Args:
        all_needed: make also what they need, whatever its state (``run``); else an earlier stage that is not done is refused by
            name, unless it is ``implied`` and was never made.

    Raises:
        RunError: an earlier stage is not done; or the disk is full, or another process is writing.
        TunesmithError: what recipe, base or machine rule out (``pipeline/early.py``), before the first stage.
    """
    goals = set(goals)
    session, kind = Session(), ""
    is_first = True
    try:
        for stage in table.closure(goals):
            known = run.stages().get(stage.name)
            state, parts = state_of(run, stage, recipe, known)
            if state.state == "done":
                if stage.name in goals or all_needed:
                    logger.info("%s: up to date", stage.name)
                continue
            if not (all_needed or stage.name in goals or (stage.implied and state.state == "never")):
                goal = next(name for name in goals if any(need.name == stage.name for need in table.closure([name])))
                raise _not_done(run, stage, state, goal)
            if parts is None:
                raise RunError(f"{run.path}: {stage.name}: {reason(state)}", f"run: tunesmith run {run.path}")
            if is_first:
                module_of("early").refuse_early(run, recipe, upcoming(run, table, recipe, goals, all_needed), fetch=True)
                is_first = False
            if stage.module != kind:
                session.close()
                session, kind = Session(), stage.module
            if known is not None:
                logger.info("%s: again, %s", stage.name, reason(state))
                _remove_damaged(run, known)
            execute(run, stage, recipe, parts, session, reason(state))
    finally:
        session.close()


def upcoming(run: RunDir, table: Table, recipe: Recipe, goals: Iterable[str], all_needed: bool) -> list[Stage]:
    """The stages that ``make`` would make."""
    goals = set(goals)
    closure = table.closure(goals)
    done = {state.stage for state in status(run, Table(tuple(closure)), recipe).stages if state.state == "done"}
    return [stage for stage in closure if stage.name not in done and (all_needed or stage.name in goals or stage.implied)]


def refuse_not_done(run: RunDir, table: Table, recipe: Recipe, name: str) -> None:
    """Refuse to go on where a stage, or one that it needs, is not done.

    Raises:
        RunError: the first such stage, and why.
    """
    records = run.stages()
    for stage in table.closure([name]):
        state, _ = state_of(run, stage, recipe, records.get(stage.name))
        if state.state != "done":
            raise _not_done(run, stage, state, name)


def _not_done(run: RunDir, stage: Stage, state: StageState, goal: str) -> RunError:
    """The refusal of a goal for a stage before it that is not done."""
    words = {"never": "was not run", "stale": "is stale", "broken": "is damaged", "waiting": "cannot be run yet"}
    why = "" if state.state == "never" and not state.why else f": {reason(state)}"
    everything = shlex.join(["tunesmith", "run", str(run.target), "--until", goal])
    return RunError(
        f"{run.path}: {stage.name} {words[state.state]}{why}",
        f"run: {stage.command(run)}; or all that is needed: {everything}",
    )


def execute(run: RunDir, stage: Stage, recipe: Recipe, parts: Parts, session: Session, why: str = "") -> None:
    """Carry a stage out and write down what it was made from and what it made.

    Raises:
        TunesmithError: what the stage refuses, a full disk, or a GPU that cannot go on (``pipeline/gpu_failure.py``).
    """
    with full_disk_named(run.path, stage.name), tracking.stage(stage.name, why):
        hardware.reset_peak_memory()
        began, started = time.time(), time.perf_counter()
        session.parts = parts
        try:
            module_of(stage.module).execute(run, recipe, session, stage.argument)
        except (RuntimeError, *raised_by_triton()) as error:
            told = module_of("gpu_failure").as_told(error, recipe, stage.name) if "torch" in sys.modules else None
            if told is None:
                raise
            raise told from error
        seconds = time.perf_counter() - started
        outputs = [name for name in run.files_below(*stage.outputs) if name not in stage.without]
        run.record(stage.name, parts, outputs, began, seconds, hardware.peak_memory())


def module_of(name: str) -> ModuleType:
    """A file of this folder, imported when it is used: here torch comes in, and nowhere above."""
    return importlib.import_module(f"tunesmith.pipeline.{name}")
