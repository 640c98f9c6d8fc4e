"""Records as a terminal shows them: tables and sentences. Nothing is computed here, and nothing but records is read."""

from collections.abc import Iterator
from typing import TypedDict

from rich import box
from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.formatting import percent, points, points_between
from tunesmith.rundir.records.advice import Advice, State
from tunesmith.rundir.records.evaluation import Comparison, Verdict

STATE_STYLES: dict[State, str] = {"pass": "green", "stop": "bold red", "unknown": "yellow"}


class Compact(TypedDict):
    """How the tables of a verdict are drawn."""

    box: Box
    pad_edge: bool
    collapse_padding: bool


COMPACT: Compact = {"box": box.SIMPLE, "pad_edge": False, "collapse_padding": True}


def print_advice(advice: Advice, console: Console) -> None:
    """The checklist and what follows from it."""
    table = Table("check", "state", "evidence", box=box.SIMPLE)
    table.columns[0].no_wrap = True
    for row in advice.checks:
        hint = Text(f"\n-> {row.hint}" if row.hint else "", "italic")
        table.add_row(row.check, Text(row.state, STATE_STYLES[row.state]), Text(row.evidence) + hint)
    console.print(table)
    console.print(Text(f"advice: {advice.ending}", "bold"), Text(advice.reason), sep="\n", soft_wrap=True)
    if advice.settings is not None:
        console.print()
        for key, value in advice.settings.keys.items():
            console.print(Text(f"  {key}: {value}  # {advice.settings.why[key]}"), soft_wrap=True)
    if advice.rent_line:
        console.print(Text(f"\n{advice.rent_line}"), soft_wrap=True)
    if advice.provisional:
        console.print("\nprovisional: no prompt was asked, and the best one is what a tuned model has to beat", soft_wrap=True)


def print_verdict(verdict: Verdict, console: Console) -> None:
    """The tables of arms, what was measured beside them, and the verdict."""
    for table in verdict_tables(verdict):
        console.print(table)
    for line in _checks(verdict):
        console.print(Text(line), soft_wrap=True)
    console.print(f"[bold]verdict: {verdict.decision}[/bold]")
    console.print(Text(verdict.reason), soft_wrap=True)
    for line in _strength(verdict):
        console.print(Text(line), soft_wrap=True)
    for sentence in verdict.advice:
        console.print(Text(sentence), soft_wrap=True)


def _strength(verdict: Verdict) -> Iterator[str]:
    """What was shown over every prompt, and what so many rows can show."""
    if len(verdict.rivals) > 1:
        gains = (
            f"{rival.way} {points(rival.comparison.gain)} ({points_between(rival.comparison.low, rival.comparison.high)})"
            for rival in verdict.rivals
        )
        yield f"gains over each prompt that has to be beaten: {'; '.join(gains)}"
    if verdict.tries.line not in verdict.reason:
        yield verdict.tries.line
    asked = f"min_gain {percent(verdict.terms.min_gain)}, certainty {verdict.terms.certainty}"
    yield f"{verdict.n} such rows deploy a true gain of {percent(verdict.detectable)} points four times in five ({asked})"


def verdict_tables(verdict: Verdict) -> tuple[Table, Table]:
    """Scores and gains of the arms; their finer figures and what they take."""
    title = f"{verdict.metric} on {verdict.n} sealed test rows; gains against {verdict.best_prompt}, the strongest prompt"
    gains = Table(
        "arm", "score", "95 %", "gain", f"{verdict.comparison.level} % of gain", "p", "won/lost", title=title, **COMPACT
    )
    arms = verdict.arms
    names = list(arms[0].figures)
    shares = [name for name in names if all(0.0 <= (arm.figures[name] or 0.0) <= 1.0 for arm in arms)]
    priced, unscored = any(arm.totals.cost is not None for arm in arms), any(arm.unscored for arm in arms)
    cut = any(arm.finished < 1.0 for arm in arms)
    more = [*names, *(["unscored"] if unscored else []), *(["cut off"] if cut else [])]
    more += ["prompt tok", "new tok", "ms", *(["cost"] if priced else [])]
    costs = Table("arm", *more, **COMPACT)
    for table in (gains, costs):
        table.columns[0].overflow = "fold"  # on a narrow terminal the name gives way, never a number
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
    for arm in arms:
        gains.add_row(arm.name, percent(arm.score), f"{percent(arm.low)}-{percent(arm.high)}", *_gain(arm.against))
        cells = [percent(arm.figures[name]) if name in shares else _number(arm.figures[name], ".3g") for name in names]
        cells += [str(arm.unscored)] if unscored else []
        cells += [str(arm.cut)] if cut else []
        cells += [f"{value:.0f}" for value in (arm.prompt_tokens, arm.new_tokens, arm.ms)]
        costs.add_row(arm.name, *cells, *([_number(arm.totals.cost, ".4g")] if priced else []))
    return gains, costs


def _checks(verdict: Verdict) -> Iterator[str]:
    """What stands between the tables and the verdict, a line each, where it was measured."""
    if recall := verdict.retrieval:
        named = f"recall@{recall.k} {recall.recall:.2f}, " if recall.recall is not None else ""
        yield f"retrieval: {named}answer recall@{recall.k} {recall.answer_recall:.2f} over {recall.passages:,} passages"
    if loss := verdict.deployed_loss:
        between = points_between(loss.low, loss.high)
        yield f"deployed form: {points(loss.gain)} points against {verdict.in_process}, 95 % {between}"
    if verdict.saving is not None:
        yield f"saving: {verdict.saving.line}"
    if verdict.judge is not None:
        calibration = verdict.judge.calibration
        yield f"judge: {'calibrated' if calibration.calibrated else 'uncalibrated'}: {calibration.reason}"
    if verdict.forgetting is not None:
        yield f"forgetting: {verdict.forgetting.verdict}: {verdict.forgetting.reason}"


def _gain(against: Comparison | None) -> tuple[str, str, str, str]:
    """Gain, interval, p and discordant rows of an arm; blank for the arm that the others are compared with."""
    if against is None:
        return "", "", "", ""
    interval, p = points_between(against.low, against.high), against.p
    return points(against.gain), interval, f"{p:.3f}" if p >= 0.001 else "<.001", f"{against.won}/{against.lost}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
