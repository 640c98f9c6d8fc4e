"""Gather what a run directory holds and fill the page (``page.html.j2``): one file, no network, for a phone and for paper.

Decisions and comparisons are the gate's; the page reads files and draws. It adds two things that follow from the rows
alone: means of tokens and milliseconds with their intervals (mean +- 1.96 standard errors, the normal approximation), and
which rows two arms answer differently. What was not measured is said to be not measured: an empty place reads as a zero.

What has a name that somebody gave (arms, endpoints, probes) is drawn in HTML, where it wraps, is escaped and can be copied;
numbers alone are drawn by matplotlib (``figures.py``).
"""

import dataclasses
import json
import math
import statistics
from typing import Any

from tunesmith.report.figures import curve_figure, loss_figure
from tunesmith.report.template import render
from tunesmith.rundir import RunDir, read_json, read_rows, write_text
from tunesmith.rundir.records.export import Export, Merge
from tunesmith.rundir.records.parity import FormParity, Parity
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import read_metrics

SHOWN, COLLAPSED_ROWS = 3, 17  # rows of a kind in the open, and behind a click; all of them are in outputs.jsonl
LONGEST = 2000  # characters of a text on the page
MEANING = {
    "deploy": "The tuned model beats the best prompt by enough to be worth deploying.",
    "prompting is enough": "Tuning helps, but by less than you said would be worth it. Keep the prompt.",
    "not better": "Tuning gained nothing over the best prompt. Keep the prompt.",
    "too little data to tell": "The test part is too small to decide. Collect more rows before you trust either.",
    "not the model that was trained": "The exported file is not what was trained, so its answers say nothing of the training.",
    "regression": "Tuning cost the model general skill. Mend that before you deploy it, whatever it gained.",
}
SHARED_COLUMNS = {"n", "score", "low", "high", "unscored", "prompt_tokens", "new_tokens", "finished", "ms", "cost"}

Outputs = list[dict[str, Any]]


def write_report(run: RunDir) -> None:
    """Write ``report.html``.

    Raises:
        RunError: the adapter was not trained here.
    """
    verdict = read_json(run.verdict_file)
    manifest, training = read_json(run.manifest_file), Training.read(run.training_file)
    outputs = {arm["arm"]: read_rows(run.evaluation / arm["arm"] / "outputs.jsonl") for arm in verdict["arms"]}
    best, candidate = verdict["best_prompt"], verdict["candidate"]
    curve = _curve(run)
    page = render(
        "page.html.j2",
        name=run.recipe().name,
        verdict=verdict,
        by_name={arm["arm"]: arm for arm in verdict["arms"]},
        meaning=MEANING[verdict["verdict"]],
        finer=[name for name, value in verdict["arms"][0].items() if isinstance(value, float) and name not in SHARED_COLUMNS],
        efforts={name: _efforts(rows) for name, rows in outputs.items()},
        deployed_loss=verdict["deployed_loss"],
        forgetting=verdict["forgetting"],
        seeds=verdict["seeds"],
        judge=verdict["judge"],
        retrieval=verdict["retrieval"],
        curve=curve,
        curve_svg=curve and curve_figure(curve),
        loss_svg=loss_figure(read_metrics(run.metrics_file), training.best_step),
        training=training,
        data=read_json(run.data / "report.json"),
        files=Export.read(run.export / "export.json").files if (run.export / "export.json").exists() else {},
        merged=Merge.read(run.export / "merge.json") if (run.export / "merge.json").exists() else None,
        parity=_parity(run),
        stages=run.stages(),
        manifest=manifest,
        differences=_differences(outputs, candidate, best),
        shown=SHOWN,
        recipe=run.recipe_file.read_text(encoding="utf-8"),
        selection=verdict["selection"],
    )
    write_text(run.report_file, page)


def _read(path: Any) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _curve(run: RunDir) -> dict[str, Any] | None:
    """The learning curve that goes with this adapter."""
    found = _read(run.evaluation / "curve.json")
    return found if found and found["inputs"] == run.key_of("train") else None


def _parity(run: RunDir) -> Parity | None:
    """The parity that goes with this export, its texts clipped; None where it was not measured."""
    target = run.export / "parity.json"
    result = Parity.read(target) if target.exists() else None
    if result is None or result.inputs != run.key_of("export"):
        return None
    return dataclasses.replace(result, forms=tuple(_clipped_form(form) for form in result.forms))


def _clipped_form(form: FormParity) -> FormParity:
    one = form.divergence
    if one is None:
        return form
    texts = {name: _clipped(text) for name, text in one.to_json().items() if isinstance(text, str) and name != "prompt"}
    return dataclasses.replace(form, divergence=dataclasses.replace(one, **texts))


def _efforts(rows: Outputs) -> dict[str, dict[str, float]]:
    """What an answer of an arm takes: mean, low and high (95 % of the mean) of tokens, milliseconds and cost per 1,000."""
    units = {"prompt_tokens": 1.0, "new_tokens": 1.0, "seconds": 1000.0, "cost": 1000.0}
    return {name: _mean([unit * row[name] for row in rows]) for name, unit in units.items() if name in rows[0]}


def _mean(values: list[float]) -> dict[str, float]:
    mean = statistics.fmean(values)
    reach = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": mean, "low": max(0.0, mean - reach), "high": mean + reach, "n": len(values)}


def _differences(outputs: dict[str, Outputs], candidate: str, best: str) -> list[dict[str, Any]]:
    """Rows by who was right, the largest differences first: what tuning broke, what it won, what both miss.

    Returns:
        For each kind its ``title``, its ``count``, and the first ``examples``. A row that either left unscored is in none.
    """
    kinds: dict[str, list[tuple[float, int]]] = {"lost": [], "won": [], "missed": []}
    for index, (mine, theirs) in enumerate(zip(outputs[candidate], outputs[best], strict=True)):
        if mine["score"] is None or theirs["score"] is None:
            continue
        change = mine["score"] - theirs["score"]
        if change:
            kinds["won" if change > 0 else "lost"].append((-abs(change), index))
        elif mine["score"] < 1.0:
            kinds["missed"].append((mine["score"], index))
    titles = {
        "lost": f"Rows that {candidate} broke: {best} did better",
        "won": f"Rows that only {candidate} gets right, or does better",
        "missed": "Rows that both miss alike",
    }
    limits = {"lost": SHOWN + COLLAPSED_ROWS, "won": SHOWN + COLLAPSED_ROWS, "missed": SHOWN}
    return [
        {
            "kind": kind,
            "title": titles[kind],
            "count": len(rows),
            "examples": [_example(outputs, index, candidate, best) for _, index in sorted(rows)[: limits[kind]]],
        }
        for kind, rows in kinds.items()
    ]


def _example(outputs: dict[str, Outputs], index: int, candidate: str, best: str) -> dict[str, Any]:
    """One row: question, reference, the answers to compare (``answers``) and those of all other arms (``others``)."""
    row = outputs[candidate][index]
    compared = dict.fromkeys(arm for arm in (best, "tuned", candidate) if arm in outputs)

    def said(arm: str) -> dict[str, Any]:
        found = outputs[arm][index]
        return {"arm": arm, "text": _pretty(found["output"]), "score": found["score"], "finished": found["finished"]}

    return {
        "id": row["id"],
        "question": _clipped(row["prompt"][-1]["content"]),
        "reference": _pretty(row["reference"]),
        "answers": [said(arm) for arm in compared],
        "others": [said(arm) for arm in outputs if arm not in compared],
    }


def _pretty(text: str) -> str:
    """JSON with a line a field, so that two answers can be compared by eye; other text as it is. Clipped."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _clipped(text)
    return _clipped(json.dumps(value, indent=1, ensure_ascii=False) if isinstance(value, dict | list) else text)


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [... and {len(text) - LONGEST:,} characters more]"
