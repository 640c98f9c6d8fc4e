"""The stage ``verdict``: decide from the scored arms and the checks around them. Reads files, and asks nobody.

What a call saves is measured where the arm ``prompt_deployed`` was scored: the same engine, file type and rows as ``deployed``.
The training costs the wall time of its stage; one that went on after a kill counts its last part.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tunesmith.advise.price import PAYBACK_DAYS, break_even, by_time, by_tokens
from tunesmith.data.split import groups_of
from tunesmith.evaluate import gate
from tunesmith.evaluate.arms import read_outputs
from tunesmith.evaluate.candidates import is_tuned
from tunesmith.evaluate.metrics import make_metric
from tunesmith.pipeline.booking import tries_of
from tunesmith.pipeline.forgetting_stages import forgetting_files
from tunesmith.pipeline.provenance import files_of, sources_of
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.recipe import PROMPT_DEPLOYED, Recipe
from tunesmith.rundir import Row, RunDir, read_rows
from tunesmith.rundir.records import FileRecord
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.choice import Choice
from tunesmith.rundir.records.evaluation import Selection, TrainingRows
from tunesmith.rundir.records.events import Decision
from tunesmith.rundir.records.evidence import Forgetting, Judgement, RetrievalRecall, Seeds
from tunesmith.rundir.records.parity import Parity
from tunesmith.rundir.records.readings import Tries
from tunesmith.rundir.records.saving import Basis, Saving
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import emit

F = TypeVar("F", bound=FileRecord)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Write ``evaluation/verdict.json``."""
    arms, folder = recipe.evaluate.arms, run.evaluation
    rows = read_rows(run.data / "test.jsonl")
    tuned = [arm for arm in arms if is_tuned(arm)]
    folder_of = run.judged.joinpath if recipe.task.metric == "judge" else run.answers
    selection = Selection.read(folder / "selection.json")
    outputs = {name: read_outputs(folder_of(name)) for name in selection.scored(arms)}
    exports = recipe.chooses or recipe.tuned_kind not in ("endpoint", "several")
    parity = _read(Parity, run.export / "parity.json") if tuned and exports else None
    training = _read(Training, run.training_file) if tuned and not recipe.tuned else None
    forgotten = {arm: Forgetting.read(run.path / file) for arm, file in forgetting_files(recipe).items()}
    evidence = gate.Evidence(
        forgetting=forgotten.get(""),
        forgetting_of=forgotten,
        forgetting_required=recipe.evaluate.forgetting.required,
        seeds=Seeds.read(folder / "seeds.json") if recipe.evaluate.seeds > 1 else None,
        parity=None if parity is None else parity.deployed_form,
        judge=Judgement.read(folder / "judge.json") if recipe.task.metric == "judge" else None,
        retrieval=_read(RetrievalRecall, folder / "retrieval.json"),
        only_worse=training is not None and training.only_worse,
        saving=saving_of(run, recipe, outputs, selection),
        training_rows=_training_rows(recipe),
        form=recipe.tuned_kind,
        tries=tries_at(run, recipe, rows, tuned) if tuned else None,
        choice=Choice.read(run.choice_file) if recipe.chooses else None,
    )
    metric, terms = make_metric(recipe.task), gate.terms_of(recipe.task)
    groups = groups_of(rows)
    decided = gate.verdict(outputs, selection, metric, terms, groups, evidence, recipe.evaluate.replaced)
    verdict = replace(decided, files=files_of(run), sources=sources_of(run))
    verdict.write(run.verdict_file)
    emit(Decision(verdict=verdict.decision, exit_code=verdict.exit_code, reason=verdict.reason))


def _training_rows(recipe: Recipe) -> TrainingRows:
    """What is known of the rows that the tuned model was trained on."""
    if not recipe.tuned:
        return "own"
    return "unknown" if recipe.data.trained_on is None else "kept out"


def tries_at(run: RunDir, recipe: Recipe, rows: Sequence[Row], arms: Sequence[str]) -> Tries:
    """What was scored on the test rows until now.

    Args:
        arms: of the tuned candidates.

    Raises:
        RunError: what was brought is not on record.
    """
    return tries_of(run, rows, [tuned_model(run, recipe, arm).key for arm in arms])


def _read(kind: type[F], path: Path) -> F | None:
    return kind.read(path) if path.exists() else None


def saving_of(run: RunDir, recipe: Recipe, outputs: dict[str, list[Output]], selection: Selection) -> Saving | None:
    """What a call of the deployed form saves; None where an arm, a price or the time of the training is not known."""
    settings, per_hour = recipe.advise, recipe.evaluate.price_per_hour
    training = run.stages().get("train")
    if PROMPT_DEPLOYED not in outputs or settings.calls_per_month is None or per_hour is None or training is None:
        return None
    prompt, tuned = (_effort(outputs[name]) for name in (PROMPT_DEPLOYED, "deployed"))
    prompt_tokens, new_tokens, seconds = (float(saved) for saved in prompt - tuned)
    per_million, cached, output = (
        settings.price_per_million_prompt_tokens,
        settings.price_per_million_cached_tokens,
        settings.price_per_million_output_tokens,
    )
    basis: Basis = "time" if per_million is None else "tokens"
    if per_million is None:
        a_call = by_time(seconds, per_hour)
    else:
        price = per_million if prompt_tokens < 0.0 else cached  # what tuning adds to a prompt is cached nowhere
        a_call = by_tokens(prompt_tokens, per_million, price, new_tokens, output)
    hours = training.seconds / 3600.0
    even = break_even(settings.calls_per_month, a_call, per_hour * hours, settings.hosting_per_month)
    return Saving(
        way=selection.way_of(selection.base_prompt),
        basis=basis,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        ms=1000.0 * seconds,
        calls_per_month=settings.calls_per_month,
        a_call=a_call,
        cached=cached is not None,
        output_priced=output is not None,
        hosting=settings.hosting_per_month,
        a_month=even.a_month,
        hours=hours,
        cost=even.cost,
        calls=None if math.isinf(even.requests) else even.requests,
        days=None if math.isinf(even.days) else even.days,
        horizon=PAYBACK_DAYS,
    )


def _effort(answers: Sequence[Output]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Mean prompt tokens, new tokens and seconds of an answer."""
    return np.array([(answer.prompt_tokens, answer.new_tokens, answer.seconds) for answer in answers]).mean(axis=0)
