"""Look at data without a recipe: bad rows, duplicates, lengths, labels, secrets.

Rows stream through: what is kept of a row is its hashes and lengths.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.contamination import Contamination
from tunesmith.data.memory import Rows
from tunesmith.data.near import NearDuplicates, question
from tunesmith.data.quality import Quality, headlines
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.pipeline.reading import reader_of, with_bar
from tunesmith.pipeline.stage import module_of
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.check import CheckReport
from tunesmith.rundir.rows import Row

if TYPE_CHECKING:
    from tunesmith.pipeline.check_tokens import Tokens


class Check:
    """What is looked at while rows are read.

    Args:
        reader: of the rows.
        tokens: counts them as a model's template renders them.
        near: search for near duplicates.
        benchmark: whose passages must not stand in the rows.
    """

    def __init__(self, reader: Reader, tokens: "Tokens | None" = None, *, near: bool = True, benchmark: Reader | None = None):
        self.reader, self._benchmark = reader, benchmark
        self._quality = Quality(reasoning_is_text=reader.options.reasoning == "keep")
        self._near = NearDuplicates() if near else None
        self._contamination = None if benchmark is None else Contamination(_texts(benchmark))
        self._tokens = tokens

    def add(self, batch: list[Row]) -> None:
        """Look at a batch of the reader's rows."""
        for part in (self._quality, self._near, self._contamination, self._tokens):
            if part is not None:
                part.add(batch)

    def report(self) -> CheckReport:
        """What was seen, after the last batch."""
        reading = self.reader.summary()
        report, find = self._quality.report(reading), self._quality.places.find
        if self._tokens is not None:
            report = replace(report, findings=(*self._tokens.findings(find), *report.findings))
        contamination = None
        if self._contamination is not None and self._benchmark is not None:
            contamination = self._contamination.report(self._benchmark.source.label)
        return CheckReport(
            source=self.reader.source.label,
            reading=reading,
            quality=report,
            headlines=headlines(report),
            near=None if self._near is None else self._near.report(find),
            contamination=contamination,
            tokens=None if self._tokens is None else self._tokens.report(find),
        )


def check(
    source: Rows,
    options: ReadOptions | None = None,
    *,
    model: str | Path | None = None,
    template: Path | None = None,
    max_length: int | None = None,
    near: bool = True,
    benchmark: Rows | None = None,
    benchmark_column: str | None = None,
    rejected: Path | None = None,
) -> CheckReport:
    """Look at data without a recipe.

    Args:
        source: file, directory or hub id; or rows in memory: a list of dictionaries, a ``datasets.Dataset``, a table of Arrow,
            pandas or polars.
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
    reader = Reader(source, options or AS_FOUND, rejected)
    column = ReadOptions(columns=None if benchmark_column is None else {"text": benchmark_column})
    items = None if benchmark is None else Reader(benchmark, column)
    tokens = None if model is None else module_of("check_tokens").tokens_of(str(model), template, max_length)
    return _report(Check(reader, tokens, near=near, benchmark=items))


def check_run(run: RunDir, near: bool) -> CheckReport:
    """Look at the rows of a run; they are rendered as its base is asked."""
    recipe = run.recipe()
    reader = reader_of(recipe)
    base = module_of("base").base_of(run, recipe)
    tokens = module_of("check_tokens").Tokens(base, recipe.model, recipe.train.max_length)
    return _report(Check(reader, tokens, near=near))


def _report(checks: Check) -> CheckReport:
    """The report of all rows."""
    for batch in with_bar(checks.reader):
        checks.add(batch)
    return checks.report()


def _texts(benchmark: Reader) -> Iterator[tuple[str, str]]:
    """Id and question of each item of a benchmark."""
    for row in benchmark:
        yield row.id, question(row)
