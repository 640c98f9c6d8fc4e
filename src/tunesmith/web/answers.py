"""The sealed rows with two arms' answers side by side, a page at a time, and which of the two was right.

The files are read line by line, both in step, and only the rows of the page are kept: a test part of a million rows takes time
and no memory. Everything here was written by data and models, and goes into the page as text.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import RunError
from tunesmith.report.shown import clipped, pretty
from tunesmith.rundir import RunDir
from tunesmith.rundir.names import from_disk
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Verdict

Show = Literal["all", "only-tuned", "only-prompt", "neither", "cut"]
SHOWS: tuple[Show, ...] = ("only-tuned", "only-prompt", "neither", "cut", "all")
ROWS = 20  # of a page


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A row with two answers."""

    number: int
    id: str
    question: str
    turns: int
    reference: str
    ours: Output
    theirs: Output
    our_text: str
    their_text: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A page of rows.

    Attributes:
        ours, theirs: the arms.
        arms: all that can be looked at.
        show: which rows.
        counts: how many rows of each kind there are.
        first: number of the first row among those, from 0.
        rows: of this page.
    """

    ours: str
    theirs: str
    arms: list[str]
    show: Show
    counts: Counter[Show]
    first: int
    rows: list[Answered]


def answers_of(run: RunDir, show: Show, first: int, ours: str | None = None, theirs: str | None = None) -> Answers | None:
    """A page of the rows that two arms answered; None where no two arms have answered yet.

    Args:
        first: of the rows of this kind, from 0.
        ours, theirs: arms; the candidate and the strongest prompt, or those that come nearest, where they are not named.

    Raises:
        RunError: answers that cannot be read, or are of different rows.
    """
    files = _files(run)
    if len(files) < 2:
        return None
    ours, theirs = _pair(run, files, ours, theirs)
    counts = Counter[Show]()
    rows: list[Answered] = []
    for number, (one, other) in enumerate(_together(files[ours], files[theirs]), start=1):
        for kind in kinds_of(one, other):
            if kind == show and first <= counts[kind] < first + ROWS:
                rows.append(_answered(number, one, other))
            counts[kind] += 1
    return Answers(ours=ours, theirs=theirs, arms=list(files), show=show, counts=counts, first=first, rows=rows)


def kinds_of(ours: Output, theirs: Output) -> list[Show]:
    """Under which headings a row is found."""
    kinds: list[Show] = ["all"]
    if not (ours.finished and theirs.finished):
        kinds.append("cut")
    if ours.score is None or theirs.score is None:
        return kinds
    if ours.score > theirs.score:
        kinds.append("only-tuned")
    elif ours.score < theirs.score:
        kinds.append("only-prompt")
    elif ours.score < 1.0:
        kinds.append("neither")
    return kinds


def _files(run: RunDir) -> dict[str, Path]:
    """The answers of every arm and finalist, by name; a judge's scores in the place of the arm's own."""
    files: dict[str, Path] = {}
    for folder in (run.evaluation, run.finalists, run.judged):
        if folder.is_dir():
            files |= {from_disk(place.name): place / "outputs.jsonl" for place in sorted(folder.iterdir())}
    return {name: file for name, file in files.items() if file.is_file()}


def _pair(run: RunDir, files: dict[str, Path], ours: str | None, theirs: str | None) -> tuple[str, str]:
    verdict = Verdict.read(run.verdict_file) if run.verdict_file.exists() else None
    tuned = [name for name in files if name.startswith(("deployed", "tuned"))]
    others = [name for name in files if name not in tuned]
    wanted = (verdict.candidate if verdict else "", *tuned, *files)
    mine = next(name for name in (ours, *wanted) if name in files)
    rivals = (verdict.best_prompt if verdict else "", *others, *files)
    return mine, next(name for name in (theirs, *rivals) if name in files and name != mine)


def _together(one: Path, other: Path) -> Iterator[tuple[Output, Output]]:
    with one.open("rb") as ours, other.open("rb") as theirs:
        for number, (mine, its) in enumerate(itertools.zip_longest(ours, theirs), start=1):
            our_row = None if mine is None else Output.parse(mine, f"{one}:{number}")
            their_row = None if its is None else Output.parse(its, f"{other}:{number}")
            if our_row is None or their_row is None or our_row.id != their_row.id:
                raise RunError(
                    f"{one.parent.name} and {other.parent.name}: row {number} is another one in each",
                    "one of the two is of an earlier state of the run: tunesmith status RUN",
                )
            yield our_row, their_row


def _answered(number: int, ours: Output, theirs: Output) -> Answered:
    asked = [turn for turn in ours.prompt if turn.get("role") == "user"]
    question = asked[-1] if asked else ours.prompt[-1]
    return Answered(
        number=number,
        id=ours.id,
        question=clipped(str(question.get("content") or "")),
        turns=len(asked),
        reference=pretty(ours.reference),
        ours=ours,
        theirs=theirs,
        our_text=pretty(ours.output),
        their_text=pretty(theirs.output),
    )
