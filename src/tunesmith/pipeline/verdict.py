"""The stage ``verdict``: decide from the scored arms and the checks around them. Reads files, and asks nobody."""

from pathlib import Path
from typing import TypeVar

from tunesmith.data.split import groups_of
from tunesmith.evaluate import gate
from tunesmith.evaluate.arms import read_outputs
from tunesmith.evaluate.metrics import make_metric
from tunesmith.pipeline.booking import tries_of
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records import FileRecord
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.events import Decision
from tunesmith.rundir.records.evidence import Forgetting, Judgement, RetrievalRecall, Seeds
from tunesmith.rundir.records.parity import Parity
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import emit

F = TypeVar("F", bound=FileRecord)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Write ``evaluation/verdict.json``."""
    arms, folder = recipe.evaluate.arms, run.evaluation
    rows = read_rows(run.data / "test.jsonl")
    tuned = any(arm in gate.TUNED_ARMS for arm in arms)
    parity = _read(Parity, run.export / "parity.json") if tuned else None
    training = _read(Training, run.training_file) if tuned else None
    evidence = gate.Evidence(
        forgetting=Forgetting.read(folder / "forgetting.json") if tuned else None,
        forgetting_required=recipe.evaluate.forgetting.required,
        seeds=Seeds.read(folder / "seeds.json") if recipe.evaluate.seeds > 1 else None,
        parity=None if parity is None else parity.deployed_form,
        judge=Judgement.read(folder / "judge.json") if recipe.task.metric == "judge" else None,
        retrieval=_read(RetrievalRecall, folder / "retrieval.json"),
        only_worse=training is not None and training.only_worse,
        tries=tries_of(run, rows) if tuned else None,
    )
    folder_of = run.judged.joinpath if recipe.task.metric == "judge" else run.answers
    selection = Selection.read(folder / "selection.json")
    outputs = {name: read_outputs(folder_of(name)) for name in selection.scored(arms)}
    metric, terms = make_metric(recipe.task), gate.terms_of(recipe.task)
    groups = groups_of(rows)
    verdict = gate.verdict(outputs, selection, metric, terms, groups, evidence)
    verdict.write(run.verdict_file)
    emit(Decision(verdict=verdict.decision, exit_code=verdict.exit_code, reason=verdict.reason))


def _read(kind: type[F], path: Path) -> F | None:
    return kind.read(path) if path.exists() else None
