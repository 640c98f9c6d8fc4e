"""The verb race: which base model to tune? Each is prompted and trained on a few rows, and asked the dev rows.

The choice of a base is most often made by a leaderboard of other people's tasks. 200 rows of one's own say more, and cost
minutes: for each model the best prompt on dev before any training, the score after a short one, the memory that it took, and
how fast it trains and answers. All models see the same train rows and the same dev rows, so their answers are compared row by
row.

What so few rows can tell is said with an interval: who leads, and who is not shown to be worse and may be smaller or faster.
The leader of several on the rows that chose it is flattered, and every training's checkpoint was chosen on them too. The sealed
test part is not read here, so the run that follows is judged on rows that no model of the race has seen.

Each model has a run directory of its own below ``race/``, with the recipe as it is but for: the model; its own chat template
where the recipe names one for another and it has one; prompts that need a search of their own or passages, endpoints and
replay left out; one finalist. The stages there are skipped when they are done, so a second call goes on, and a model more
costs that model. One that cannot be loaded, rendered or trained is named with its reason, and the others go on; but of
processes that were launched together (``launch/``) all end with it.

Refused: choosing by dev loss, whose unit is a token of each model's own.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.data.split import groups_of
from tunesmith.engines.base import open_base
from tunesmith.errors import RunError, TunesmithError
from tunesmith.evaluate.arms import arm_of
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import Metric
from tunesmith.formatting import percent, points, points_between
from tunesmith.launch.variables import launch
from tunesmith.models.identity import own_template
from tunesmith.pipeline.base import keep_moment
from tunesmith.pipeline.curve import share_of
from tunesmith.pipeline.dev_answers import adapter_on_dev
from tunesmith.pipeline.dev_task import spread
from tunesmith.pipeline.evaluation import evaluation_of
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.subrun import changed, make_inner, open_inner
from tunesmith.recipe import PROMPT_ARMS, Recipe
from tunesmith.recipe.data import Chat
from tunesmith.recipe.evaluate import External
from tunesmith.recipe.load import name_of
from tunesmith.rundir import RunDir, fingerprint, read_rows, write_rows
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.race import BaseRace, RaceModel, RaceScore
from tunesmith.rundir.records.training import Training
from tunesmith.rundir.rows import Row

logger = logging.getLogger(__name__)

COSTLY = ("optimized_prompt", "retrieval")  # prompts that are searched for, or need passages


def race(run: RunDir, recipe: Recipe, models: Sequence[tuple[str, str]], rows: int) -> BaseRace:
    """Try each model; writes ``race/race.json``.

    Args:
        models: each as it was named, and as a recipe names it.
        rows: of train and of dev at most, for each.

    Raises:
        RunError: no model went all the way, or the metric scores no answer by itself.
    """
    if recipe.task.metric == "judge":
        raise RunError(f"{run.path}: a judge compares two answers and scores none by itself", "race with another task.metric")
    train, dev = read_rows(run.data / "train.jsonl"), read_rows(run.data / "dev.jsonl")
    train, dev = share_of(recipe, train, min(1.0, rows / len(train))), spread(dev, rows)
    entries: list[tuple[RaceModel, list[Output]]] = []
    out: list[RaceModel] = []
    metric: Metric | None = None
    for number, (name, place) in enumerate(models, start=1):
        logger.info(f"race: {name}, {number} of {len(models)}")
        try:
            entry, outputs, metric = _try(run, _with_template(recipe, entrant(recipe, place), name), train, dev, name)
        except TunesmithError as error:
            if launch() is not None:  # the others are in the middle of what has failed here
                logger.warning(f"race: {name} cannot be tried, which ends a race of several processes: leave it out")
                raise
            logger.warning(f"race: {name} is out: {error.message}")
            out.append(RaceModel(model=name, why_not=f"{error.message}; {error.hint}" if error.hint else error.message))
            continue
        entries.append((entry, outputs))
    if metric is None:
        reasons = "; ".join(f"{model.model}: {model.why_not}" for model in out)
        raise RunError(f"{run.path}: no model of the race went all the way: {reasons}", "name others with --model")
    entries.sort(key=lambda pair: -_tuned(pair[0]))
    best = entries[0][1]
    placed = [entries[0][0]]
    for entry, outputs in entries[1:]:
        placed.append(replace(entry, against=compare(outputs, best, metric, groups_of(dev))))
    result = BaseRace(
        metric=metric.name,
        train_rows=len(train),
        dev_rows=len(dev),
        models=(*placed, *out),
        reason=_reason(placed),
    )
    result.write(run.path / "race" / "race.json")
    return result


def entrant(recipe: Recipe, model: str) -> Recipe:
    """The recipe of a model in the race."""
    arms = [arm for arm in recipe.evaluate.arms if arm in PROMPT_ARMS and arm not in COSTLY] or ["instruction"]
    own = {} if model == recipe.model else {"revision": None, "model_sha256": None}
    chat = recipe.chat if model == recipe.model else Chat(enable_thinking=recipe.chat.enable_thinking)
    alone = changed(recipe, model=model, chat=chat, train=recipe.train.model_copy(update={"replay": 0.0}), **own)
    evaluate = alone.evaluate.model_copy(update={"arms": (*arms, "tuned"), "external": dict[str, External](), "finalists": 1})
    return alone.model_copy(update={"evaluate": evaluate})


def _with_template(recipe: Recipe, one: Recipe, name: str) -> Recipe:
    """The recipe of a model in the race, with the template that ``recipe`` names where the model has none of its own.

    Raises:
        ModelError: no such model, or it cannot be read.
    """
    template = recipe.chat.template
    if template is None or one.chat.template is not None or own_template(open_base(one).source) is not None:
        return one
    logger.info(f"race: {name} has no chat template of its own, and gets the recipe's: {template}")
    return one.model_copy(update={"chat": one.chat.model_copy(update={"template": template})})


def _try(run: RunDir, recipe: Recipe, train: list[Row], dev: list[Row], name: str) -> tuple[RaceModel, list[Output], Metric]:
    inner = open_inner(run.path / "race" / f"{name_of(Path(name).name)}-{fingerprint(recipe.model)[:8]}", recipe)
    keep_moment(run, inner)
    for part, rows in (("train", train), ("dev", dev), ("test", [])):  # of the sealed part nothing is asked here
        write_rows(inner.data / f"{part}.jsonl", rows)
    make_inner(inner, recipe, "render", *(["base"] if recipe.base_budget else []), "select", "train")
    session = Session()
    try:
        evaluation = evaluation_of(inner, recipe, session)
        outputs, metric = adapter_on_dev(evaluation, inner.adapter, inner.path / "asked" / "dev"), evaluation.metric
    finally:
        session.close()
    prompt = Selection.read(inner.evaluation / "selection.json").prompt
    assert prompt is not None  # a judge alone gives none
    training, stage = Training.read(inner.training_file), inner.stages()["train"]
    tuned = arm_of("tuned", outputs, metric, groups_of(dev), None)
    entry = RaceModel(
        model=name,
        prompt=RaceScore(score=prompt.score, low=prompt.low, high=prompt.high),
        tuned=RaceScore(score=tuned.score, low=tuned.low, high=tuned.high),
        memory=stage.peak_bytes if training.gpu is None else training.gpu.peak_allocated,
        train_seconds=stage.seconds,
        tokens_per_second=training.tokens_per_second,
        answer_ms=tuned.ms,
    )
    return entry, outputs, metric


def _tuned(entry: RaceModel) -> float:
    assert entry.tuned is not None
    return entry.tuned.score


def _reason(placed: Sequence[RaceModel]) -> str:
    """Who leads, and who is not shown to be worse."""
    leads = f"{placed[0].model} leads with {percent(_tuned(placed[0]))} of 100"
    near = [
        f"{entry.model} ({points(entry.against.gain)}, 95 % {points_between(entry.against.low, entry.against.high)})"
        for entry in placed[1:]
        if entry.against is not None and entry.against.high >= 0.0
    ]
    if near:
        return f"{leads}; not shown to be worse on these rows: {', '.join(near)}"
    return f"{leads}; every other one is worse on these rows, beyond chance" if len(placed) > 1 else f"{leads}, alone"
