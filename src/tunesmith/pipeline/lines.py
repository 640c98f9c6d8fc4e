"""What a check says on the terminal: a line for each thing worth one, the numbers first."""

from tunesmith.data.finding import recorded
from tunesmith.data.own_dates import OwnDates
from tunesmith.data.quality import Quality, wrong_lines
from tunesmith.data.read import Reader
from tunesmith.formatting import limits, percent
from tunesmith.rundir.records.check import CheckReport, ContaminationReport, Conversion, NearReport, Reading, TokenReport
from tunesmith.rundir.rows import Row

_COLUMNS = 8  # ignored ones that have a line each


def check_lines(report: CheckReport) -> list[str]:
    """A check in short."""
    lines = [*reading_lines(report.reading), *report.headlines]
    if report.near is not None:
        lines += _near_lines(report.near)
    if report.contamination is not None:
        lines += _contamination_lines(report.contamination)
    return lines + (_token_lines(report.tokens) if report.tokens is not None else [])


def reading_lines(reading: Reading) -> list[str]:
    """How a source was read: its format, what was passed over, bad rows by code."""
    formats = ", ".join(reading.kinds) or reading.format
    lines = [f"{', '.join(reading.files[:3])}{' ...' if len(reading.files) > 3 else ''}: format {formats}"]
    lines += reading.notes
    ignored = sorted(reading.ignored_columns.items(), key=lambda column: column[1].nearest is None)  # misspelt ones first
    shown = len(ignored) if len(ignored) <= _COLUMNS + 1 else _COLUMNS
    for name, column in ignored[:shown]:
        near = f"; did you mean {column.nearest}?" if column.nearest else ""
        lines.append(f"column {name or 'without a name'} is ignored ({column.rows:,} rows){near}")
    if others := [name or "without a name" for name, _ in ignored[shown:]]:
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        lines.append(f"and {len(others):,} others are ignored: {named}")
    if reading.bad_rows:
        codes = ", ".join(f"{code} {count:,}" for code, count in reading.problems_by_code.items())
        lines.append(f"wrong: {reading.bad_rows:,} bad rows set aside ({codes})")
    return lines


def conversion_lines(conversion: Conversion) -> list[str]:
    """How a source was read that was written anew, and what is wrong with its rows."""
    return [*reading_lines(conversion.reading), *wrong_lines(conversion.findings)]


def lines_of(reader: Reader, rows: list[Row], date: str | None = None) -> tuple[str, ...]:
    """How a source is read so far, and what is wrong with some of its rows: for verbs that look at the first ones.

    Args:
        date: that the template writes into the rows.
    """
    quality, reading = Quality(reasoning_is_text=reader.options.reasoning == "keep"), reader.summary()
    quality.add(rows)
    report, dates = quality.report(reading), OwnDates(date)
    dates.add(rows)
    places = quality.places.find(set(range(len(rows))))
    own = [recorded(finding, places) for finding in dates.finding()]
    return *reading_lines(reading), *wrong_lines([*own, *report.findings])


def _near_lines(near: NearReport) -> list[str]:
    of = f"threshold {near.threshold}, {'exact' if near.exact else 'estimated'} Jaccard similarity"
    if not near.clusters:
        return [f"no near-duplicate prompts ({of})"]
    largest = near.largest[0]
    first = largest.examples[0]
    return [
        f"suspect: {near.rows:,} rows in {near.clusters:,} clusters of near-duplicate prompts ({of}); "
        f"{near.rows_left:,} rows would be left, {near.unlike_answers:,} clusters have unlike answers",
        f"  largest: {largest.rows:,} rows, first {first.place} ({first.id}): {first.excerpt}",
    ]


def _contamination_lines(contamination: ContaminationReport) -> list[str]:
    rows = contamination.rows
    line = (
        f"{'wrong' if rows else 'note'}: {len(rows):,} rows share a passage with {contamination.benchmark} "
        f"({contamination.items:,} items, {contamination.too_short:,} too short to judge)"
    )
    return [line, *(f"  {row.place} ~ {row.item}: {row.excerpt}" for row in rows[:3])]


def _token_lines(tokens: TokenReport) -> list[str]:
    lines: list[str] = []
    if tokens.rows:
        lengths = tokens.lengths
        lines.append(
            f"tokens a row: {lengths.min:,} to {lengths.max:,} (median {lengths.median:,}), "
            f"{percent(tokens.supervised_share, 0)} % supervised; max_length {limits(tokens.too_long.keep)}"
        )
    if tokens.too_long.count:
        examples = ", ".join(f"{row.place} ({row.id}): {row.length:,}" for row in tokens.too_long.examples[:5])
        lines.append(f"wrong: {tokens.too_long.count:,} rows are longer than {tokens.max_length:,} tokens: {examples}")
    if tokens.refusals.count:
        lines.append(f"wrong: {tokens.refusals.count:,} rows cannot be rendered")
        lines += [f"  {row.place} ({row.id}): {row.excerpt}" for row in tokens.refusals.examples[:5]]
    return lines + [f"note: {count:,} rows: {note}" for note, count in tokens.notes.items()]
