"""Write a first recipe for some data: it looks at the rows, proposes a metric under which every reference scores, and says why.

The source is read twice: for the check and the different answers, and for whether every reference scores. Refused: one reading
that keeps all answers, which holds a file of long texts in memory.
"""

import logging
import os
from collections import Counter
from pathlib import Path

from tunesmith.data.classes import MOST_SHORT
from tunesmith.data.parts import is_split
from tunesmith.data.propose import Proposal, proposals, recipe_text
from tunesmith.data.quality import wrong_lines
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.data.task_columns import columns_hint, label_column
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.text import normalise
from tunesmith.pipeline.check import Check
from tunesmith.pipeline.lines import reading_lines
from tunesmith.pipeline.reading import with_bar
from tunesmith.pipeline.stage import module_of
from tunesmith.recipe import Task, load_recipe
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.records.check import Reading
from tunesmith.rundir.rows import Row

logger = logging.getLogger(__name__)


def init(source: str, model: str, options: ReadOptions = AS_FOUND, out: Path | None = None) -> Path:
    """Write a commented recipe; returns its path.

    Args:
        source: file, directory or hub id of the rows.
        model: hub id, directory or .gguf file; its tokenizer measures the rows.
        options: how to read.
        out: the file to write; by default the source's stem with ``.yaml``, here.

    Raises:
        RecipeError: the file is there already.
        DataError: nothing to read, bad rows, or rows without an answer that can be scored.
    """
    path = out or Path(f"{Path(source.replace(':', '-')).name.partition('.')[0] or 'recipe'}.yaml")
    if path.exists():
        raise RecipeError(f"{path}: there is already a file", "name another one with --out, or remove it")
    text, proposal = draft(source, model, options, path)
    write_text(path, text)
    load_recipe(path)
    logger.info(f"metric {proposal.metric}: {proposal.reason}")
    return path


def draft(source: str, model: str, options: ReadOptions, path: Path, metric: str | None = None) -> tuple[str, Proposal]:
    """The text of a recipe for some data, and the metric in it with the reason.

    Args:
        path: where the recipe would lie, from which it names data and model.
        metric: the one that is asked for; proposed when None.

    Raises:
        DataError: nothing to read, bad rows, or rows without an answer that can be scored.
    """
    reader = Reader(source, options)
    checks = Check(reader, module_of("check_tokens").tokens_of(model, None, None), near=False)
    answers = Answers()
    for batch in with_bar(reader):
        checks.add(batch)
        answers.add(batch)
    report = checks.report()
    for line in (*reading_lines(report.reading), *wrong_lines(report.quality.findings)):
        logger.info(line)
    known = proposals(report.quality, answers.labels(source, report.reading), answers.calls)
    if metric is None:
        proposal, misfits = first_that_fits(reader, known)
    else:
        asked = Proposal(metric=metric, reason="as asked")
        proposal, misfits = next((one for one in known if one.metric == metric), asked), ()
    text = recipe_text(
        report,
        proposal,
        path=str(path),
        model=named_from(path, model),
        data=named_from(path, source),
        options=options,
        is_split=is_split(part for part, _ in reader.source.named_parts),
        misfits=misfits,
    )
    return text, proposal


class Answers:
    """Different answers of rows, up to a number that no labels have."""

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self.calls = 0  # rows whose answer calls functions
        self._not_scored: Row | None = None

    def add(self, batch: list[Row]) -> None:
        """Count the answers of a batch."""
        for row in batch:
            self.calls += "tool_calls" in row.messages[-1]
            if row.why_not_scored(calls=True):
                self._not_scored = self._not_scored or row
            elif len(self._answers) <= MOST_SHORT:
                self._answers[row.reference.strip()] += 1

    def labels(self, source: str, reading: Reading) -> tuple[str, ...]:
        """The most frequent first, one of each that the metrics cannot tell apart; none where they are many.

        Args:
            reading: of the source; a table of texts and labels is told from plain texts in the hint.

        Raises:
            DataError: a row whose answer cannot be compared.
        """
        if row := self._not_scored:
            raise DataError(
                f"{source}: row {row.id}, {row.place}: {row.why_not_scored(calls=True)}, so no metric can be proposed",
                columns_hint(reading) if label_column(reading) else "train and preview such rows alone",
            )
        if len(self._answers) > MOST_SHORT:
            return ()
        spellings: dict[str, str] = {}
        for answer, _ in self._answers.most_common():
            spellings.setdefault(normalise(answer), answer)
        spellings.pop("", None)
        return tuple(spellings.values())


def first_that_fits(reader: Reader, suitable: list[Proposal]) -> tuple[Proposal, tuple[str, ...]]:
    """The first under which every reference scores, and of those before it a row that does not.

    Raises:
        DataError: no metric scores every reference.
    """
    metrics = [make_metric(Task(metric=proposal.metric, labels=proposal.labels)) for proposal in suitable]
    first: dict[int, Row] = {}  # that does not score, by the number of the metric
    for batch in with_bar(reader):
        for number, metric in enumerate(metrics):
            misfit = None if number in first else next((row for row in batch if not metric.fits(row.reference)), None)
            if misfit is not None:
                first[number] = misfit
    misfits: list[str] = []
    for number, proposal in enumerate(suitable):
        if number not in first:
            return proposal, tuple(misfits)
        misfits.append(f"{proposal.metric}: the answer of {first[number].place} does not score against itself")
    raise DataError(f"{reader.source.label}: {misfits[-1]}", "mend the row, or remove it")


def named_from(path: Path, named: str) -> str:
    """A file or directory as a recipe at ``path`` names it; a hub id as it is."""
    if not Path(named).exists():
        return named
    relative = os.path.relpath(Path(named).resolve(), path.resolve().parent)
    return relative if relative.startswith("..") else f"./{relative}"
