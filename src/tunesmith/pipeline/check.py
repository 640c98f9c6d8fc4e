"""Look at data without a recipe: bad rows, duplicates, lengths, labels, secrets.

Rows stream through: what is kept of a row is its hashes and lengths.
"""

from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.contamination import Contamination
from tunesmith.data.near import NearDuplicates, question
from tunesmith.data.quality import Quality, headlines
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.pipeline.reading import with_bar
from tunesmith.pipeline.stage import module_of
from tunesmith.rundir.records.check import CheckReport


def check(
    source: str | Path,
    options: ReadOptions | None = None,
    *,
    model: str | None = None,
    template: Path | None = None,
    max_length: int | None = None,
    near: bool = True,
    benchmark: Path | None = None,
    benchmark_column: str | None = None,
    rejected: Path | None = None,
) -> CheckReport:
    """Look at data without a recipe.

    Args:
        source: file, directory or hub id.
        options: how to read.
        model: hub id, directory or .gguf file whose tokenizer and template render every row; then lengths are tokens.
        template: Jinja file that takes the place of the model's template.
        max_length: tokens above which a row is too long; with ``model`` alone.
        near: search for near duplicates.
        benchmark: data whose passages must not stand in the rows.
        benchmark_column: its column that holds the questions, where it is not in a format of ours.
        rejected: file for bad rows, with ``on_bad_row: quarantine``.

    Raises:
        DataError: nothing to read, or bad rows that are not to be quarantined.
    """
    quality, duplicates = Quality(), NearDuplicates() if near else None
    contamination = None if benchmark is None else Contamination(_texts(benchmark, benchmark_column))
    tokens = None if model is None else module_of("check_tokens").Tokens(model, template, max_length)
    reader = Reader(source, options or AS_FOUND, rejected)
    for batch in with_bar(reader):
        quality.add(batch)
        if duplicates is not None:
            duplicates.add(batch)
        if contamination is not None:
            contamination.add(batch)
        if tokens is not None:
            tokens.add(batch)
    report = quality.report()
    return CheckReport(
        source=str(source),
        reading=reader.summary(),
        quality=report,
        headlines=headlines(report),
        near=None if duplicates is None else duplicates.report(quality.places.find),
        contamination=None if contamination is None else contamination.report(str(benchmark)),
        tokens=None if tokens is None else tokens.report(quality.places.find),
    )


def _texts(benchmark: Path, column: str | None) -> Iterator[tuple[str, str]]:
    """Id and question of each item of a benchmark file."""
    for row in Reader(benchmark, ReadOptions(columns=None if column is None else {"text": column})):
        yield row.id, question(row)
