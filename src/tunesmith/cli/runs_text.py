"""Runs beside each other, as a table on the terminal and as CSV."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.formatting import duration, percent, points, points_between
from tunesmith.rundir.records.runs import RunEntry, Runs
from tunesmith.tracking import visible

SHOWN = 4  # keys a run
STYLES = {"deploy": "green", "as good and cheaper": "green", "regression": "red", "failed": "red", "running": "cyan"}


def in_order(found: Runs, by: str) -> Runs:
    """The runs sorted; those without the figure last."""
    rank: dict[str, Callable[[RunEntry], tuple[bool, float | str]]] = {
        "name": lambda entry: (False, entry.name),
        "seconds": lambda entry: (False, -entry.seconds),
        "verdict": lambda entry: (entry.outcome is None, entry.outcome.decision if entry.outcome else entry.state),
        "gain": lambda entry: (entry.outcome is None, -entry.outcome.gain if entry.outcome else 0.0),
        "score": lambda entry: (entry.outcome is None, -_score(entry) if entry.outcome else 0.0),
    }
    return found if by == "began" else replace(found, runs=tuple(sorted(found.runs, key=rank[by])))


def print_runs(found: Runs, console: Console) -> None:
    """A line a run, then what was changed in each; model and metric stand above where all have the same."""
    entries = found.runs
    shared = [
        f"{name} {values.pop()}"
        for name, values in (("model", {entry.model for entry in entries}), ("metric", {entry.metric for entry in entries}))
        if len(values) == 1
    ]
    if shared:
        console.print(Text(visible(", ".join(shared)), "dim"), soft_wrap=True)
    metric = [] if len({entry.metric for entry in entries}) == 1 else ["metric"]
    table = Table("run", *metric, "verdict", "score", "prompt", "gain", "time", "rows", box=box.SIMPLE, pad_edge=False)
    table.columns[0].overflow = "fold"  # a name that is cut names two runs
    for column in table.columns[-5:-1]:
        column.justify, column.no_wrap = "right", True
    for entry in entries:
        scores, prompt, gain = "", "", ""
        if (outcome := entry.outcome) is not None:
            scores, prompt = percent(_score(entry)), percent(outcome.arm(outcome.best_prompt).score)
            gain = f"{points(outcome.gain)} ({points_between(outcome.low, outcome.high)})"
        state = _state(entry)
        cells = [Text(visible(entry.name)), *([Text(entry.metric)] if metric else [])]
        cells += [Text(state, STYLES.get(state, "")), Text(scores), Text(prompt), Text(gain)]
        table.add_row(*cells, duration(entry.seconds), _rows(entry))
    console.print(table)
    for entry in entries:
        if lines := _notes(entry):
            console.print(Text(visible(f"{entry.name}: {'; '.join(lines)}")), soft_wrap=True)


def _notes(entry: RunEntry) -> list[str]:
    """Why a run is not done, and what differs from the run that it is compared with."""
    lines = [entry.why] if entry.why else []
    if entry.repeats is not None:
        return [*lines, f"the same experiment as {entry.repeats}"]
    if entry.against is None:
        return lines
    more = [f"{len(entry.changed) - SHOWN} more keys"] if len(entry.changed) > SHOWN else []
    rows = ["other rows"] if entry.same_data is False else []
    differences = [*rows, *entry.changed[:SHOWN], *more] or ["no key"]
    return [*lines, f"against {entry.against}: {', '.join(differences)}"]


def as_csv(found: Runs) -> str:
    """A line a run, three columns an arm; an empty cell where nothing was measured."""
    arms = list(dict.fromkeys(arm.name for entry in found.runs if entry.outcome for arm in entry.outcome.arms))
    head = [*("run", "state", "why", "verdict", "exit_code", "model", "metric", "candidate", "best_prompt"), "score"]
    head += [*("gain", "gain_low", "gain_high", "seconds", "began", "data", "same_data", "against", "changed", "repeats")]
    head += [f"{arm} {figure}" for arm in arms for figure in ("score", "low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_line(entry) for entry in found.runs)
    return text.getvalue()


def _line(entry: RunEntry) -> dict[str, str | float | bool | None]:
    line: dict[str, str | float | bool | None] = {
        "run": entry.name,
        "state": entry.state,
        "why": entry.why,
        "model": entry.model,
        "metric": entry.metric,
        "seconds": entry.seconds,
        "began": entry.began,
        "data": entry.data,
        "same_data": entry.same_data,
        "against": entry.against,
        "changed": "; ".join(entry.changed),
        "repeats": entry.repeats,
    }
    if (outcome := entry.outcome) is not None:
        line |= {"verdict": outcome.decision, "exit_code": outcome.exit_code, "candidate": outcome.candidate}
        line |= {"best_prompt": outcome.best_prompt, "score": _score(entry)}
        line |= {"gain": outcome.gain, "gain_low": outcome.low, "gain_high": outcome.high}
        for arm in outcome.arms:
            line |= {f"{arm.name} score": arm.score, f"{arm.name} low": arm.low, f"{arm.name} high": arm.high}
    return line


def _score(entry: RunEntry) -> float:
    assert entry.outcome is not None
    return entry.outcome.arm(entry.outcome.candidate).score


def _state(entry: RunEntry) -> str:
    """The verdict, or how the run stands."""
    if entry.outcome is None:
        return entry.state
    return f"({entry.outcome.decision})" if entry.state == "outdated" else entry.outcome.decision


def _rows(entry: RunEntry) -> Text:
    """The hash of the rows, which stands out where they are others."""
    return Text(entry.data or "", "yellow" if entry.same_data is False else "")
