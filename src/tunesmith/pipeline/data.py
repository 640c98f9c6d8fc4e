"""The stage ``data``: read, check and split the rows into ``data/{train,dev,test}.jsonl``.

The source is read once into a file of rows; what the split needs is learnt on the way, and a second pass hands the rows out to
the parts. Rows that an earlier split knows stay in their part.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from tunesmith import hardware
from tunesmith.data.leaks import Leaks, leak_lines, settle_leaks
from tunesmith.data.near import NearDuplicates
from tunesmith.data.quality import Quality, headlines
from tunesmith.data.read import Reader
from tunesmith.data.split import PARTS, SplitFacts, read_split, split, write_split
from tunesmith.errors import DataError
from tunesmith.evaluate.metrics.labels import labels_without_rows
from tunesmith.pipeline.reading import reader_of, with_bar
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, git_state, package_versions, stream_rows, writing_rows
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.check import CheckReport, DataReport

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Read, check and split the rows.

    Raises:
        DataError: nothing to read, bad rows that are not to be quarantined, or no row for a part.
    """
    settings = recipe.data
    if settings.earlier_split is not None:
        _refuse_missing_split(settings.earlier_split)
    reader = reader_of(recipe, run.data / "rejected.jsonl")
    digests: dict[str, JsonValue] = {str(file.path): content_hash(file.path) for file in reader.source.files}
    run.data.mkdir(parents=True, exist_ok=True)
    everything = run.data / ".rows.jsonl"
    parts, report, leaks = _read_and_split(run, recipe, reader, everything)
    for number, part in enumerate(PARTS):
        with writing_rows(run.data / f"{part}.jsonl") as write:
            write(row for index, row in enumerate(stream_rows(everything)) if parts[index] == number)
    everything.unlink()
    report.write(run.data_report_file)
    dataclasses.replace(
        run.manifest(),
        data={"path": settings.path, "sha256": digests},
        seed=recipe.seed,
        packages=package_versions(),
        git=git_state(Path.cwd()),
        hardware=dataclasses.asdict(hardware.describe()),
    ).write(run.manifest_file)
    logger.info(f"data: {report.rows} rows, {report.train} train, {report.dev} dev, {report.test} test (sealed)")
    if report.repeated_prompts:
        what = "repeat an earlier prompt, are pieces of one conversation, or share a group"
        logger.info(f"data: {report.repeated_prompts} rows {what}, and stay on one side of the split")
    for line in leak_lines(leaks, settings.on_leak):
        logger.info(f"data: {line}")
    if recipe.task.labels is not None:
        test = [row.reference for row in stream_rows(run.data / "test.jsonl") if row.why_not_scored() is None]
        if absent := labels_without_rows(recipe.task, test):
            more = "more rows of it, or a larger data.test_fraction, bring it in"
            logger.warning(f"data: no test row has the label {', '.join(absent)}: no arm's score says anything of it; {more}")


def _read_and_split(run: RunDir, recipe: Recipe, reader: Reader, everything: Path) -> tuple[np.ndarray, DataReport, Leaks]:
    """Read all rows into one file; decide each row's part. Returns the parts, the report and the leaks."""
    facts, quality, near = SplitFacts(), Quality(), NearDuplicates()
    with writing_rows(everything) as write:
        for batch in with_bar(reader):
            write(batch)
            quality.add(batch)
            near.add(batch)
            for row in batch:
                facts.add(row)
    report = quality.report()
    lines = headlines(report)
    for line in lines:
        logger.info(f"data: {line}")
    facts.stratify = report.classes is not None
    settings = recipe.data
    named = settings.earlier_split or (run.split_file if run.split_file.exists() else None)
    earlier = None if named is None else read_split(named)
    if earlier is not None:
        logger.info(f"data: rows that {named} knows stay in their part; seed and fractions decide for new rows alone")
    parts = split(facts, settings.test_fraction, settings.dev_fraction, recipe.seed, earlier)
    parts, leaks = settle_leaks(facts, parts, near.groups(), settings.on_leak, earlier)
    write_split(run.split_file, facts, parts, settings.test_fraction, settings.dev_fraction, recipe.seed)
    check = CheckReport(
        source=settings.path,
        reading=reader.summary(),
        quality=report,
        headlines=lines,
        near=near.report(quality.places.find),
    )
    train, dev, test = (int((parts == number).sum()) for number in range(len(PARTS)))
    counts = DataReport(
        rows=len(parts),
        train=train,
        dev=dev,
        test=test,
        leaks=leaks.test,
        inside=leaks.inside,
        dev_leaks=leaks.dev,
        repeated_prompts=facts.repeats,
        check=check,
    )
    return parts, counts, leaks


def _refuse_missing_split(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no split there", "data.earlier_split names the data/split.json of an earlier run")
