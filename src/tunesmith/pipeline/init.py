"""Write a first recipe for some data: it looks at the rows, proposes a metric under which every reference scores, and says why.

The source is read three times (check, answers, references), which keeps nothing of a row but its answer where that repeats.
"""

import logging
import os
from collections import Counter
from itertools import chain
from pathlib import Path

from tunesmith.data.classes import MOST_SHORT
from tunesmith.data.propose import Proposal, proposals, recipe_text
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.text import normalise
from tunesmith.pipeline.check import check
from tunesmith.pipeline.reading import with_bar
from tunesmith.recipe import Task, load_recipe
from tunesmith.rundir.atomic import write_text
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
    report = check(source, options, model=model, near=False)
    proposal, misfits = _proposal(source, options, proposals(report.quality, _labels(source, options)))
    text = recipe_text(
        report,
        proposal,
        path=str(path),
        model=_from(path, model),
        data=_from(path, source),
        format=options.format,
        columns=options.columns,
        misfits=misfits,
    )
    write_text(path, text)
    load_recipe(path)
    logger.info(f"metric {proposal.metric}: {proposal.reason}")
    return path


def _labels(source: str, options: ReadOptions) -> tuple[str, ...]:
    """Different answers, the most frequent first, one of each that the metrics cannot tell apart; none where they are many.

    Raises:
        DataError: a row whose answer cannot be compared.
    """
    answers: Counter[str] = Counter()
    for row in _rows(source, options):
        if why := row.why_not_scored():
            raise DataError(
                f"{source}: row {row.id}, {row.place}: {why}, so no metric can be proposed", "train and preview such rows alone"
            )
        if len(answers) <= MOST_SHORT:
            answers[row.reference.strip()] += 1
    if len(answers) > MOST_SHORT:
        return ()
    spellings: dict[str, str] = {}
    for answer, _ in answers.most_common():
        spellings.setdefault(normalise(answer), answer)
    spellings.pop("", None)
    return tuple(spellings.values())


def _proposal(source: str, options: ReadOptions, suitable: list[Proposal]) -> tuple[Proposal, tuple[str, ...]]:
    """The first under which every reference scores, and of those before it a row that does not."""
    misfits: list[str] = []
    for proposal in suitable:
        metric = make_metric(Task(metric=proposal.metric, labels=proposal.labels))
        misfit = next((row for row in _rows(source, options) if not metric.fits(row.reference)), None)
        if misfit is None:
            return proposal, tuple(misfits)
        misfits.append(f"{proposal.metric}: the answer of {misfit.place} does not score against itself")
    raise DataError(f"{source}: {misfits[-1]}", "mend the row, or remove it")


def _rows(source: str, options: ReadOptions) -> chain[Row]:
    return chain.from_iterable(with_bar(Reader(source, options)))


def _from(path: Path, named: str) -> str:
    """A file or directory as a recipe at ``path`` names it; a hub id as it is."""
    if not Path(named).exists():
        return named
    relative = os.path.relpath(Path(named).resolve(), path.resolve().parent)
    return relative if relative.startswith("..") else f"./{relative}"
