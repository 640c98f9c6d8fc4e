"""Gather what a run directory holds and fill the page (``page.html.j2``). Reads files only; computes nothing new."""

import json
from typing import Any

from tunesmith.report.figures import arms_figure, loss_figure
from tunesmith.report.template import render
from tunesmith.rundir import RunDir, read_json, read_rows, write_text
from tunesmith.track import read_metrics

EXAMPLES = 12
MEANING = {
    "deploy": "The tuned model beats the best prompt by enough to be worth deploying.",
    "prompting is enough": "Tuning helps, but by less than you said would be worth it. Keep the prompt.",
    "not better": "Tuning gained nothing over the best prompt. Keep the prompt.",
    "too little data to tell": "The test part is too small to decide. Collect more rows before you trust either.",
}


def write_report(run: RunDir) -> None:
    """Write ``report.html``: one file, no network, readable on a phone and in print."""
    verdict = read_json(run.verdict_file)
    manifest = read_json(run.manifest_file)
    outputs = {arm["arm"]: read_rows(run.evaluation / arm["arm"] / "outputs.jsonl") for arm in verdict["arms"]}
    exported, merged = run.export / "export.json", run.export / "merge.json"
    finer = [name for name in ("strict", "parse", "schema", "field_f1") if name in verdict["arms"][0]]
    page = render(
        "page.html.j2",
        name=run.recipe().name,
        verdict=verdict,
        meaning=MEANING[verdict["verdict"]],
        finer=finer,
        arms_svg=arms_figure(verdict["arms"], verdict["best_prompt"]),
        loss_svg=loss_figure(read_metrics(run.metrics_file), manifest["training"]["best_step"]),
        training=manifest["training"],
        data=read_json(run.data / "report.json"),
        files=read_json(exported) if exported.exists() else {},
        merged=read_json(merged) if merged.exists() else {},
        stages=run.stages(),
        manifest=manifest,
        examples=_examples(outputs, verdict["candidate"], verdict["best_prompt"]),
        recipe=run.recipe_file.read_text(encoding="utf-8"),
        selection=verdict["selection"],
    )
    write_text(run.report_file, page)


def _examples(outputs: dict[str, list[dict[str, Any]]], candidate: str, best_prompt: str) -> list[dict[str, Any]]:
    """Rows to look at: where the candidate and the best prompt differ, either way, then rows both got wrong."""
    rows = []
    for index, row in enumerate(outputs[candidate]):
        mine, theirs = row["score"], outputs[best_prompt][index]["score"]
        kind = "both wrong" if not mine and not theirs else "both right"
        if mine != theirs:
            kind = f"only {candidate}" if mine else f"only {best_prompt}"
        rows.append((kind, index))
    kinds = (f"only {best_prompt}", f"only {candidate}", "both wrong", "both right")
    chosen: list[tuple[str, int]] = []
    for kind in kinds:
        chosen += [entry for entry in rows if entry[0] == kind][: EXAMPLES // 3]
    return [
        {
            "kind": kind,
            "id": outputs[candidate][index]["id"],
            "question": outputs[candidate][index]["prompt"][-1]["content"],
            "reference": _pretty(outputs[candidate][index]["reference"]),
            "answers": [(arm, _pretty(rows[index]["output"]), bool(rows[index]["score"])) for arm, rows in outputs.items()],
        }
        for kind, index in chosen[:EXAMPLES]
    ]


def _pretty(text: str) -> str:
    """JSON with a line a field, so that two answers can be compared by eye; other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(value, indent=1, ensure_ascii=False) if isinstance(value, dict | list) else text
