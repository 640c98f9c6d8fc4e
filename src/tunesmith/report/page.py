"""Gather what a run directory holds and fill the page (``page.html.j2``): one file, no network, for a phone and for paper.

Decisions and comparisons are the gate's; the page reads records and draws. It adds two things that follow from the rows
alone: means of tokens and milliseconds with their intervals (mean +- 1.96 standard errors, the normal approximation), and
which rows two arms answer differently. What was not measured is said to be not measured: an empty place reads as a zero.

What has a name that somebody gave (arms, endpoints, probes) is drawn in HTML, where it wraps, is escaped and can be copied;
numbers alone are drawn by matplotlib (``figures.py``).
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from tunesmith.report.base_figure import base_figure
from tunesmith.report.figures import curve_figure, loss_figure
from tunesmith.report.meaning import MEANING
from tunesmith.report.shown import clipped, pretty
from tunesmith.report.template import render
from tunesmith.rundir import RunDir, read_json, write_text
from tunesmith.rundir.records import FileRecord
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.base_forms import BaseForms
from tunesmith.rundir.records.brought import Brought
from tunesmith.rundir.records.check import DataReport
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.evidence import Curve
from tunesmith.rundir.records.export import Export, Merge
from tunesmith.rundir.records.parity import Divergence, Parity
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import read_metrics

SHOWN, COLLAPSED_ROWS = 3, 17  # rows of a kind in the open, and behind a click; all of them are in outputs.jsonl

F = TypeVar("F", bound=FileRecord)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """A mean over ``n`` answers with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Efforts:
    """What an answer of an arm takes; ``cost`` is that of 1,000, None without a price."""

    prompt_tokens: Effort
    new_tokens: Effort
    ms: Effort
    cost: Effort | None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An arm's answer to a row, as it is shown."""

    arm: str
    text: str
    score: float | None
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row: question, reference, the answers to compare, and those of all other arms."""

    id: str
    question: str
    reference: str
    answers: list[Reply]
    others: list[Reply]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Rows of one kind: how many there are, and the first of them."""

    kind: Literal["lost", "won", "missed"]
    title: str
    count: int
    examples: list[Example]


def write_report(run: RunDir) -> None:
    """Write ``report.html``.

    Raises:
        RunError: there is no verdict, or a file of the run is damaged.
    """
    verdict = Verdict.read(run.verdict_file)
    recipe = run.recipe()
    manifest, training = read_json(run.manifest_file), None if recipe.tuned else Training.read(run.training_file)
    folder_of = run.judged.joinpath if recipe.task.metric == "judge" else run.answers
    outputs = {arm.name: Output.read_lines(folder_of(arm.name) / "outputs.jsonl") for arm in verdict.arms}
    curve = _read(Curve, run.evaluation / "curve.json") if recipe.evaluate.learning_curve else None
    page = render(
        "page.html.j2",
        name=recipe.name,
        verdict=verdict,
        meaning=MEANING[verdict.decision],
        efforts={name: _efforts(answers) for name, answers in outputs.items()},
        curve=curve,
        curve_svg=curve and curve_figure(curve),
        base_forms=(base_forms := _read(BaseForms, run.base_forms_file) if recipe.base_budget else None),
        base_svg=base_forms and base_figure(base_forms),
        loss_svg=training and loss_figure(read_metrics(run.metrics_file), training.best_step),
        training=training,
        brought=_read(Brought, run.brought_file) if recipe.tuned else None,
        data=DataReport.read(run.data_report_file),
        export=_read(Export, run.export / "export.json"),
        merge=_read(Merge, run.export / "merge.json"),
        parity=_parity(run),
        stages={name: entry.to_json() for name, entry in run.stages().items()},
        manifest=manifest,
        differences=_differences(outputs, verdict),
        shown=SHOWN,
        recipe=run.recipe_file.read_text(encoding="utf-8"),
    )
    write_text(run.report_file, page)


def _read(kind: type[F], path: Path) -> F | None:
    return kind.read(path) if path.exists() else None


def _parity(run: RunDir) -> Parity | None:
    """The parity that goes with this export, its texts clipped; None where it was not measured."""
    parity = _read(Parity, run.export / "parity.json")
    if parity is None:
        return None
    forms = (
        replace(form, divergence=None if form.divergence is None else _clipped_texts(form.divergence)) for form in parity.forms
    )
    return replace(parity, forms=tuple(forms))


def _clipped_texts(divergence: Divergence) -> Divergence:
    return replace(
        divergence,
        question=clipped(divergence.question),
        so_far=clipped(divergence.so_far),
        reference=clipped(divergence.reference),
        form=clipped(divergence.form),
    )


def _efforts(outputs: Sequence[Output]) -> Efforts:
    costs = [output.cost for output in outputs if output.cost is not None]

    def effort(value: Callable[[Output], float]) -> Effort:
        return _effort([value(output) for output in outputs])

    return Efforts(
        prompt_tokens=effort(lambda output: output.prompt_tokens),
        new_tokens=effort(lambda output: output.new_tokens),
        ms=effort(lambda output: 1000.0 * output.seconds),
        cost=_effort([1000.0 * cost for cost in costs]) if costs else None,
    )


def _effort(values: list[float]) -> Effort:
    mean = statistics.fmean(values)
    reach = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Effort(mean=mean, low=max(0.0, mean - reach), high=mean + reach, n=len(values))


def _differences(outputs: dict[str, list[Output]], verdict: Verdict) -> list[Difference]:
    """Rows by who was right, the largest differences first: what tuning broke, what it won, what both miss.

    A row that either left unscored is in none.
    """
    candidate, best = verdict.candidate, verdict.best_prompt
    compared = tuple(dict.fromkeys(arm for arm in (best, verdict.in_process, candidate) if arm in outputs))
    kinds: dict[Literal["lost", "won", "missed"], list[tuple[float, int]]] = {"lost": [], "won": [], "missed": []}
    for index, (ours, theirs) in enumerate(zip(outputs[candidate], outputs[best], strict=True)):
        if ours.score is None or theirs.score is None:
            continue
        change = ours.score - theirs.score
        if change:
            kinds["won" if change > 0 else "lost"].append((-abs(change), index))
        elif ours.score < 1.0:
            kinds["missed"].append((ours.score, index))
    titles = {
        "lost": f"Rows that {candidate} broke: {best} did better",
        "won": f"Rows that only {candidate} gets right, or does better",
        "missed": "Rows that both miss alike",
    }
    limits = {"lost": SHOWN + COLLAPSED_ROWS, "won": SHOWN + COLLAPSED_ROWS, "missed": SHOWN}
    return [
        Difference(
            kind=kind,
            title=titles[kind],
            count=len(rows),
            examples=[_example(outputs, index, candidate, compared) for _, index in sorted(rows)[: limits[kind]]],
        )
        for kind, rows in kinds.items()
    ]


def _example(outputs: dict[str, list[Output]], index: int, candidate: str, compared: Sequence[str]) -> Example:
    row = outputs[candidate][index]

    def reply(arm: str) -> Reply:
        output = outputs[arm][index]
        return Reply(arm=arm, text=pretty(output.output), score=output.score, finished=output.finished)

    return Example(
        id=row.id,
        question=clipped(row.prompt[-1]["content"]),
        reference=pretty(row.reference),
        answers=[reply(arm) for arm in compared],
        others=[reply(arm) for arm in outputs if arm not in compared],
    )
