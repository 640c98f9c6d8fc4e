"""The stage ``data``: read, check and split the rows into ``data/{train,dev,test}.jsonl``.

The source is read once into a file of rows; what the split needs is learnt on the way, and a second pass hands the rows out to
the parts. Rows that an earlier split knows stay in their part.
"""

import dataclasses
import logging
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from tunesmith import hardware
from tunesmith.data.choose import places
from tunesmith.data.choose import repeats as repeated
from tunesmith.data.leaks import Leaks, leak_lines, settle_leaks
from tunesmith.data.near import NearDuplicates
from tunesmith.data.quality import Quality, advice_lines, headlines
from tunesmith.data.read import Reader
from tunesmith.data.seen import SeenRows, keep_out
from tunesmith.data.size_advice import advice
from tunesmith.data.split import (
    DEV,
    PARTS,
    TEST,
    TRAIN,
    EarlierSplit,
    SplitFacts,
    keep_given,
    read_split,
    split,
    write_split,
)
from tunesmith.errors import DataError
from tunesmith.evaluate.metrics.labels import labels_without_rows
from tunesmith.pipeline.lines import reading_lines
from tunesmith.pipeline.reading import reader_of, refuse_plain_texts, trained_on_reader, with_bar
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.taking import taken
from tunesmith.recipe import Recipe
from tunesmith.rundir import Row, RunDir, git_state, package_versions, stream_rows, writing_rows
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.check import CheckReport, DataReport
from tunesmith.rundir.records.quality import QualityReport

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
    rows = _read_and_split(run, recipe, reader, everything)
    report, trained = rows.report, 0
    for number, part in enumerate(PARTS):
        with writing_rows(run.data / f"{part}.jsonl") as write:
            stream = (row for row, of in zip(stream_rows(everything), rows.parts, strict=True) if of == number)
            if number == TRAIN and rows.repeats is not None:
                for row in _repeated(stream, rows.repeats[rows.parts == TRAIN].tolist()):
                    trained += row.repeats
                    write([row])
            else:
                write(stream)
    if rows.repeats is not None:
        report = dataclasses.replace(report, trained=trained)
        logger.info(f"data: by their weights {trained:,} rows are trained on, of {report.train:,} in the train part")
    everything.unlink()
    report.write(run.data_report_file)
    dataclasses.replace(
        run.manifest(),
        data={"path": reader.source.label, "sha256": digests},
        seed=recipe.seed,
        packages=package_versions(),
        git=git_state(Path.cwd()),
        hardware=dataclasses.asdict(hardware.describe()),
    ).write(run.manifest_file)
    logger.info(f"data: {report.rows} rows, {report.train} train, {report.dev} dev, {report.test} test (sealed)")
    if report.repeated_prompts:
        what = "repeat an earlier prompt, are pieces of one conversation, or share a group"
        logger.info(f"data: {report.repeated_prompts} rows {what}, and stay on one side of the split")
    for line in leak_lines(rows.leaks, settings.on_leak, given=settings.split == "given"):
        logger.info(f"data: {line}")
    if recipe.task.labels is not None:
        test = [row.reference for row in stream_rows(run.data / "test.jsonl") if row.why_not_scored() is None]
        if absent := labels_without_rows(recipe.task, test):
            more = "more rows of it, or a larger data.test_fraction, bring it in"
            logger.warning(f"data: no test row has the label {', '.join(absent)}: no arm's score says anything of it; {more}")


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What became of the rows, one entry a row: its part, and how often it is trained on (None: all of them once)."""

    parts: np.ndarray
    repeats: np.ndarray | None
    leaks: Leaks
    report: DataReport


def _read_and_split(run: RunDir, recipe: Recipe, reader: Reader, everything: Path) -> _Rows:
    """Read all rows into one file; decide each row's part."""
    facts, near = SplitFacts(), NearDuplicates()
    settings = recipe.data
    quality = Quality(reasoning_is_text=settings.reasoning == "keep")
    weights = [rows.weight for rows in settings.paths]
    weighted = any(weight != 1.0 for weight in weights)
    there, repeats = bytearray(), array("L")
    with writing_rows(everything) as write:
        for batch in taken(reader, recipe, run.data / ".all.jsonl"):
            write(batch.rows)
            quality.add(batch.rows)
            near.add(batch.rows)
            for row in batch.rows:
                facts.add(row)
            there += bytes([PARTS.index(batch.part) if batch.part else TRAIN] * len(batch.rows))
            if weighted:
                weight = weights[batch.entry]
                drawn = places([row.id for row in batch.rows], recipe.seed, "repeat")
                repeats.extend(repeated(place, weight) for place in drawn.tolist())
    reading = reader.summary()
    report = quality.report(reading)
    refuse_plain_texts(recipe, reading, report)
    usual = advice_lines(report)
    for line in (*reading_lines(reading), *(line for line in headlines(report) if line not in usual)):
        logger.info(f"data: {line}")
    facts.stratify = report.classes is not None
    parts, earlier = _parts_of(run, recipe, facts, np.frombuffer(bytes(there), np.uint8))
    given = settings.split == "given"
    parts, leaks = settle_leaks(facts, parts, near.groups(), settings.on_leak, earlier, given=given)
    seen = kept_out = None
    if settings.trained_on is not None:
        parts, seen, kept_out = _keep_out(recipe, facts, parts, everything)
    write_split(run.split_file, facts, parts, settings.test_fraction, settings.dev_fraction, recipe.seed)
    train, dev, test = (int((parts == number).sum()) for number in range(len(PARTS)))
    report = _sized(report, test, is_trained=not recipe.tuned)
    logger.info(f"data: {advice_lines(report)[0]}")
    check = CheckReport(
        source=reader.source.label,
        reading=reading,
        quality=report,
        headlines=headlines(report),
        near=near.report(quality.places.find),
    )
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
        split=settings.split or "drawn",
        seen=seen,
        kept_out=kept_out,
    )
    return _Rows(parts, np.array(repeats, np.int64) if repeats else None, leaks, counts)


def _sized(report: QualityReport, test: int, *, is_trained: bool) -> QualityReport:
    """The report with an advice by the test part as it is, in the place of the one by its usual share."""
    prompts = report.prompts.distinct if report.prompts.rows else None
    known = advice(report.duplicates.distinct, prompts, test_rows=test, is_trained=is_trained)
    return dataclasses.replace(report, advice=known)


def _keep_out(recipe: Recipe, facts: SplitFacts, parts: np.ndarray, everything: Path) -> tuple[np.ndarray, int, int]:
    """Parts without the rows that the tuned model was trained on; how many of ours those are, and how many were moved."""
    looked_at = SeenRows()
    looked_at.add_ours(stream_rows(everything))
    count = looked_at.add_trained_on(row for batch in with_bar(trained_on_reader(recipe)) for row in batch)
    found = looked_at.found()
    kept, moved = keep_out(facts, parts, found)
    logger.info(
        f"data: the model was trained on {count:,} rows of {recipe.data.trained_on}; {int(found.sum()):,} of the rows here are "
        f"among them or near to one, and {moved:,} of dev and test went to train"
    )
    return kept, int(found.sum()), moved


def _parts_of(run: RunDir, recipe: Recipe, facts: SplitFacts, given: np.ndarray) -> tuple[np.ndarray, EarlierSplit | None]:
    """The part of each row before leaks, and the earlier split that it keeps to."""
    settings = recipe.data
    test, dev = settings.test_fraction, settings.dev_fraction
    if settings.split == "given":
        for part, fraction in ((TEST, test), (DEV, dev)):
            name = PARTS[part]
            what = f"is drawn from train ({fraction:g} of it)"
            if (given == part).any():
                what = f"is the part that is there; data.{name}_fraction counts for nothing"
            logger.info(f"data: {name} {what}")
        return keep_given(facts, given, test, dev, recipe.seed), None
    named = settings.earlier_split or (run.split_file if run.split_file.exists() else None)
    earlier = None if named is None else read_split(named)
    if earlier is not None:
        logger.info(f"data: rows that {named} knows stay in their part; seed and fractions decide for new rows alone")
    return split(facts, test, dev, recipe.seed, earlier), earlier


def _repeated(rows: Iterable[Row], repeats: list[int]) -> Iterator[Row]:
    """The rows that are trained on, each with how often."""
    for row, times in zip(rows, repeats, strict=True):
        if times:
            yield row if times == 1 else dataclasses.replace(row, repeats=times)


def _refuse_missing_split(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no split there", "data.earlier_split names the data/split.json of an earlier run")
