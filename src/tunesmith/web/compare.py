"""Two runs beside each other: the keys that differ, the same rows or others, verdicts, arms, both trainings in one picture."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tunesmith.errors import TunesmithError
from tunesmith.formatting import duration, percent, points, points_between
from tunesmith.rundir.records.runs import RunEntry
from tunesmith.web.charts import Frame, Line, picture, running_mean
from tunesmith.web.life import Steps
from tunesmith.web.runs import Shelf


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is shown of two runs.

    Attributes:
        changed: keys that differ, from the first to the second.
        same_data: whether they were made from the same rows; None where it is not known.
        same_test: whether their sealed test parts are the same; likewise.
        rows: facts of both: what, the first's, the second's.
        arms: scores of both: arm, the first's, the second's.
        loss: both trainings.
        problem: why they could not be compared; empty where they were.
    """

    changed: tuple[str, ...] = ()
    same_data: bool | None = None
    same_test: bool | None = None
    rows: list[tuple[str, str, str]]
    arms: list[tuple[str, str, str]]
    loss: Markup
    problem: str = ""


def compare(shelf: Shelf, first: str, second: str) -> Comparison:
    """Two runs of a folder.

    Raises:
        KeyError: no run of such a name.
    """
    loss = _losses(shelf, first, second)
    try:
        found = {entry.name: entry for entry in shelf.compared(first).runs}
    except TunesmithError as error:
        return Comparison(rows=[], arms=[], loss=loss, problem=str(error))
    if missing := [name for name in (first, second) if name not in found]:
        return Comparison(rows=[], arms=[], loss=loss, problem=f"{missing[0]}: cannot be read as a run")
    one, other = found[first], found[second]
    names = list(dict.fromkeys(arm.name for entry in (one, other) if entry.outcome for arm in entry.outcome.arms))
    return Comparison(
        changed=other.changed if first != second else (),
        same_data=other.same_data if first != second else True,
        same_test=_same_test(shelf, first, second),
        rows=[*zip(_FACTS, _facts(one), _facts(other), strict=True)],
        arms=[(name, _score(one, name), _score(other, name)) for name in names],
        loss=loss,
    )


_FACTS = (
    "state",
    "verdict",
    "gain over its best prompt",
    "candidate",
    "best prompt",
    "model",
    "metric",
    "rows",
    "began",
    "time",
)


def _facts(entry: RunEntry) -> tuple[str, ...]:
    outcome = entry.outcome
    return (
        f"{entry.state}: {entry.why}" if entry.why else entry.state,
        "none yet" if outcome is None else outcome.decision,
        "-" if outcome is None else f"{points(outcome.gain)} points ({points_between(outcome.low, outcome.high)})",
        "-" if outcome is None else outcome.candidate,
        "-" if outcome is None else outcome.best_prompt,
        entry.model,
        entry.metric,
        entry.data or "-",
        "-" if entry.began is None else entry.began[:16].replace("T", " "),
        duration(entry.seconds),
    )


def _same_test(shelf: Shelf, first: str, second: str) -> bool | None:
    """Whether the sealed test parts are the same, as the stages wrote them down."""
    hashes: list[str | None] = []
    for name in (first, second):
        record = shelf.feed(name).run.stages().get("data")
        state = None if record is None else record.outputs.get("data/test.jsonl")
        hashes.append(None if state is None else state.sha256)
    return None if None in hashes else hashes[0] == hashes[1]


def _score(entry: RunEntry, name: str) -> str:
    arms = [] if entry.outcome is None else [arm for arm in entry.outcome.arms if arm.name == name]
    return f"{percent(arms[0].score)} ({percent(arms[0].low)} to {percent(arms[0].high)})" if arms else "-"


def _losses(shelf: Shelf, first: str, second: str) -> Markup:
    lines: list[Line] = []
    for name, style in ((first, "one"), (second, "other")):
        with shelf.feed(name).look() as (life, _):
            lines += _lines(life.steps, name, style)
    return picture(lines, Frame(f"Loss by optimizer step: {first} and {second}")) if lines else Markup("")


def _lines(steps: Steps, name: str, style: str) -> list[Line]:
    if not len(steps.steps):
        return []
    x = np.array(steps.steps, dtype=np.float64)
    mean = running_mean(np.array(steps.columns["loss"]))
    dev = np.array(steps.columns["dev_loss"])
    return [Line(f"{name}, train", f"{style} thin", x, mean), Line(f"{name}, dev", style, x, dev, is_dotted=True)]
