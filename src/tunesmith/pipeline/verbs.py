"""What a person can ask of a run, a function a verb: the command line, ``class Run`` and the tests call these.

A verb holds the run's lock while it writes, makes its stage (``stage.make``), and returns what the stage wrote. Nothing here
imports torch; a stage's own file does, when the stage is made.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tunesmith import tracking
from tunesmith.errors import RunError
from tunesmith.pipeline import stage as stages
from tunesmith.pipeline.choice_stage import NAME as CHOOSE
from tunesmith.pipeline.followers import Followers
from tunesmith.pipeline.stage import Table, module_of
from tunesmith.pipeline.sweep_stage import sweep_stage
from tunesmith.pipeline.table import maker_of, table_of
from tunesmith.recipe import load_recipe
from tunesmith.recipe.load import model_place
from tunesmith.report.verdict_markdown import verdict_markdown
from tunesmith.rundir import RunDir, sha256_file
from tunesmith.rundir.events import EventLog
from tunesmith.rundir.records.advice import Advice
from tunesmith.rundir.records.check import CheckReport
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.evidence import Curve, Forgetting, Seeds
from tunesmith.rundir.records.export import Export
from tunesmith.rundir.records.parity import Parity, Sweep
from tunesmith.rundir.records.race import BaseRace
from tunesmith.rundir.records.stages import Status
from tunesmith.rundir.records.training import Training

logger = logging.getLogger(__name__)

RECIPES = (".yaml", ".yml")
MOST_NAMED = 10  # of runs or recipes in a hint


def open_run(target: str | Path, out: str | Path | None = None, *, replace: bool = False) -> RunDir:
    """The run of a target: an existing run directory, or a recipe, whose run is ``runs/<name>`` unless ``out`` is given.

    Raises:
        RecipeError: the recipe cannot be read, or a key is wrong.
        RunError: no run or recipe there, or the run of another recipe.
    """
    return _run_of(target, out, replace, RunDir.create)


def look_at(target: str | Path, out: str | Path | None = None, *, replace: bool = False) -> RunDir:
    """The same run to be looked at, as ``open_run`` would leave it; nothing is written.

    Raises:
        RecipeError: the recipe cannot be read, or a key is wrong.
        RunError: no run or recipe there, or the run of another recipe.
    """
    return _run_of(target, out, replace, RunDir.planned)


def _run_of(target: str | Path, out: str | Path | None, replace: bool, enter: Callable[..., RunDir]) -> RunDir:
    target = Path(target)
    if target.is_dir():
        run = RunDir(target)
        if not run.recipe_file.exists():
            raise RunError(f"{target}: no run here (no recipe.yaml)", _targets_here())
        return run
    if not target.exists() and target.suffix not in RECIPES:
        raise RunError(f"{target}: no run or recipe of that name", _targets_here())
    recipe = load_recipe(target)
    return enter(Path(out) if out is not None else Path("runs") / str(recipe.name), recipe, target, replace=replace)


def _targets_here() -> str:
    """What may be named in the place of a target that is not there."""
    runs = sorted(str(file.parent) for file in Path().glob("runs/*/recipe.yaml"))
    recipes = sorted(str(file) for file in Path().iterdir() if file.suffix in RECIPES)
    known = [f"{kind} here: {', '.join(names[:MOST_NAMED])}" for kind, names in (("runs", runs), ("recipes", recipes)) if names]
    return "; ".join(known) or "there are no runs and no recipes here; write one with: tunesmith init DATA --model MODEL"


def make(run: RunDir, goals: Iterable[str], *, all_needed: bool = False, force: Iterable[str] = ()) -> None:
    """Make stages of a run, by their names.

    Args:
        all_needed: make also what they need; else an earlier stage that is not done is refused by name.
        force: stages that are made again whatever their state.

    Raises:
        RunError: a stage that the recipe does not have, an earlier stage that is not done, or another process is writing.
    """
    recipe = run.recipe()
    table = table_of(recipe)
    goals, force = _known(run, table, goals), _known(run, table, force)
    with Followers(run, recipe.report_to) as followers, run.writing(), tracking.attached(EventLog(run.events_file), followers):
        for name in force:
            run.forget(name)
        stages.make(run, table, recipe, goals, all_needed=all_needed)


def _known(run: RunDir, table: Table, names: Iterable[str]) -> list[str]:
    """The stages of some names; ``evaluate`` stands for all arms and finalists."""
    chosen: list[str] = []
    for name in names:
        stages_of_name = [stage.name for stage in table.stages if name in (stage.name, stage.module)]
        if not stages_of_name:
            raise RunError(f"{name}: not a stage of {run.path}", f"stages: {', '.join(s.name for s in table.stages)}")
        chosen += stages_of_name
    return chosen


def status(run: RunDir) -> Status:
    """How every stage of a run stands; nothing is written."""
    recipe = run.recipe()
    return stages.status(run, table_of(recipe), recipe)


def dry_run(run: RunDir) -> Status:
    """How every stage of a run stands; what recipe, base or machine rule out is refused. Nothing is written or fetched.

    Raises:
        TunesmithError: see ``pipeline/early.py``.
    """
    recipe = run.recipe()
    table = table_of(recipe)
    stages_to_make = stages.upcoming(run, table, recipe, ["report"], True)
    not_looked_at = module_of("early").refuse_early(run, recipe, stages_to_make, fetch=False)
    if not_looked_at is not None:
        logger.info(f"the base is not looked at: {not_looked_at}")
    return stages.status(run, table, recipe)


def run(directory: RunDir, *, until: str = "report", force: Iterable[str] = ()) -> Verdict | None:
    """All stages in order; returns the verdict where it was reached."""
    module_of("runs").say_twin(directory)
    make(directory, [until], all_needed=True, force=force)
    return Verdict.read(directory.verdict_file) if until in ("verdict", "report") else None


def data(run: RunDir) -> None:
    """Read, check and split the rows."""
    make(run, ["data"])


def render(run: RunDir) -> None:
    """Render the rows with the model's chat template and mark what is supervised."""
    make(run, ["render"])


def train(run: RunDir) -> Training:
    """Train the adapter."""
    make(run, ["train"])
    return Training.read(run.training_file)


def evaluate(run: RunDir, arms: Iterable[str] | None = None) -> None:
    """Score arms, all of the recipe's and every finalist when none is named, on the sealed test part.

    Raises:
        RunError: an arm that the recipe does not have, or whose model was not made yet.
    """
    known = run.recipe().evaluate.arms
    names = known if arms is None else tuple(arms)
    if unknown := set(names) - set(known):
        raise RunError(f"{min(unknown)}: not an arm of this recipe", f"arms: {', '.join(known)}")
    make(run, [*(f"evaluate {arm}" for arm in names), *(["evaluate finalists"] if arms is None else [])])


def export(run: RunDir) -> Export:
    """Write the forms that are deployed."""
    make(run, ["export"])
    return Export.read(run.export / "export.json")


def parity(run: RunDir) -> Parity:
    """Hold every exported form against what was trained."""
    make(run, ["parity"])
    return Parity.read(run.export / "parity.json")


def forgetting(run: RunDir) -> dict[str, Forgetting]:
    """Measure what the tuned model has forgotten, against its base: ``tuned``, or of several candidates each by its arm, and
    ``deployed`` of the one that is chosen."""
    make(run, ["forgetting"])
    recipe = run.recipe()
    measured = [stage for stage in table_of(recipe).stages if stage.module == "forgetting"]
    own = "deployed" if recipe.chooses else "tuned"
    return {stage.argument or own: Forgetting.read(run.path / stage.outputs[0]) for stage in measured}


def seeds(run: RunDir) -> Seeds | None:
    """Train and score the adapters of ``evaluate.seeds``; None where the recipe asks for one."""
    if run.recipe().evaluate.seeds == 1:
        return None
    make(run, ["seeds"])
    return Seeds.read(run.evaluation / "seeds.json")


def learning_curve(run: RunDir) -> Curve | None:
    """Train on shares of the train part; None where the recipe asks for no curve."""
    if not run.recipe().evaluate.learning_curve:
        return None
    make(run, ["learning-curve"])
    return Curve.read(run.evaluation / "curve.json")


def entrants(models: Sequence[str]) -> list[tuple[str, str]]:
    """The models of a race, each as it was named and as a recipe names it; relative paths start from the working directory.

    Raises:
        RunError: fewer than two, or one twice.
    """
    places = [model_place(Path.cwd(), model) for model in models]
    if twice := [model for number, model in enumerate(models) if places[number] in places[:number]]:
        raise RunError(f"{twice[0]}: is named twice, and a model does not race itself", "name each --model once")
    if len(models) < 2:
        raise RunError("one model alone is no race", "name two or more: --model A --model B; or train the one: tunesmith run")
    return list(zip(models, places, strict=True))


def race(run: RunDir, models: Sequence[tuple[str, str]], rows: int) -> BaseRace:
    """Try several base models on a few rows of a run each; the test part is not read.

    Args:
        models: of ``entrants``.
        rows: of train and of dev at most.

    Raises:
        RunError: no model went all the way, or the rows of the run are not as they were read.
    """
    recipe = run.recipe()
    with run.writing(), tracking.attached(EventLog(run.events_file)):
        if "data" in run.stages():
            check_done(run, "data")
        else:
            stages.make(run, table_of(recipe), recipe, ["data"])
        return module_of("race").race(run, recipe, models, rows)


def verdict(run: RunDir) -> Verdict:
    """Decide from the scored arms."""
    make(run, ["verdict"])
    return Verdict.read(run.verdict_file)


def verdict_page(run: RunDir, decided: Verdict) -> str:
    """A verdict as Markdown, for whoever reviews the change that it judges."""
    return verdict_markdown(decided, str(run.recipe().name), sha256_file(run.verdict_file))


def report(run: RunDir) -> Path:
    """Write the page."""
    make(run, ["report"])
    return run.report_file


def sweep(run: RunDir, types: tuple[str, ...] = ()) -> Sweep:
    """Write the forms that are deployed, then score several GGUF types on dev and recommend one.

    Raises:
        RunError: a type that is not written here, before anything is; or train is not done.
    """
    recipe = run.recipe()
    stage = sweep_stage(recipe, types)
    make(run, ["export"])
    added = Table((*table_of(recipe).stages, stage))
    with run.writing():
        stages.make(run, added, recipe, ["sweep"])
    return Sweep.read(run.export / "sweep.json")


def check(run: RunDir, *, near: bool = True) -> CheckReport:
    """Look at the rows of a run, rendered as its base is asked; nothing is written.

    Args:
        near: search for near duplicates.

    Raises:
        DataError: nothing to read, or bad rows that are not to be quarantined.
    """
    return module_of("check").check_run(run, near)


def advise(run: RunDir, quick: bool = False) -> Advice:
    """Say whether to tune at all, before any training."""
    return module_of("advise").advise(run, quick)


def chat(run: RunDir, compare: bool = False) -> Callable[[list[dict[str, str]]], dict[str, str]]:
    """The tuned model to talk to: a function from a conversation to answers by name.

    Raises:
        RunError: it was not trained, or from another recipe.
    """
    recipe = run.recipe()
    check_done(run, CHOOSE if recipe.chooses else maker_of(recipe))
    return module_of("chat").chat(run, compare)


def accept_base(run: RunDir) -> str:
    """Write down that the adapter is meant for the base that the recipe names now; returns its sha256.

    Raises:
        RunError: there is no adapter.
    """
    if not run.adapter.is_dir():
        raise RunError(f"{run.path}: train was not run", f"run: tunesmith train {run.path}")
    with run.writing():
        return module_of("accept_base").accept_base(run)


def check_done(run: RunDir, name: str) -> None:
    """Refuse a stage that is not done; writes nothing.

    Raises:
        RunError: it was never made, is made from other inputs, or lacks an output.
    """
    recipe = run.recipe()
    table = table_of(recipe)
    stages.refuse_not_done(run, table, recipe, name)
