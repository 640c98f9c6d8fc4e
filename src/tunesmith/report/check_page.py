"""The page of a check: what is wrong with the data first, then what is in them.

A person opens it with one question, "may I train on this?", so the findings stand on top, the worst first, each with
the rows to look at; pictures and tables follow for those who want to know their data. A section that has nothing to say
is left out: a table of zeros teaches the reader to skip tables.

Bad rows, rows too long, rows that the template refuses, contamination and near duplicates are findings too, and are
ranked with the others, so that nothing serious stands below the fold because another part of the program found it.

The page is filled from the report's records (``template.py`` makes them harmless) and computes nothing but shares and order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tunesmith.formatting import limits
from tunesmith.report.check_figures import count_figure, length_figure, share_figure
from tunesmith.report.template import render
from tunesmith.rundir import write_text
from tunesmith.rundir.records.check import CheckReport, ContaminationReport, NearReport, Reading, TokenReport, TooLong
from tunesmith.rundir.records.quality import (
    CheckFinding,
    Diversity,
    Languages,
    Lengths,
    QualityReport,
    RowExcerpt,
    RowLength,
    TextDiversity,
)

SEVERITIES = ("wrong", "suspect", "note")
VERDICTS = {
    "wrong": "Something in these rows is wrong",
    "suspect": "Look at some rows before you train",
    "note": "Nothing wrong was found",
}
SHOWN = 20  # examples of a finding that the page made
LONG = 40  # lines of a table that may be long
MANY = 200  # contaminated rows listed
_PERSONAL = "rows with what looks like: "  # how the text of every finding about secrets and personal data begins

T = TypeVar("T")


@dataclass(frozen=True)
class BarTable:
    """A table with bars: lines of (label, count, share), how many lines are left out, and its title where it has its own."""

    lines: Sequence[tuple[str, int, float]]
    left: int = 0
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture and its caption."""

    svg: str
    caption: str


def write_check_page(report: CheckReport, path: Path) -> None:
    """Write the page of a check: one file, no network, no script, readable on a phone and in print.

    Args:
        report: what ``check`` returns. ``headlines`` are for the terminal and not used here.
        path: file to write.
    """
    quality, reading, tokens, contamination = report.quality, report.reading, report.tokens, report.contamination
    findings = _findings(report)
    tally = [(word, sum(finding.severity == word for finding in findings)) for word in SEVERITIES]
    worst = next((word for word, count in tally if count), "note")
    page = render(
        "check.html.j2",
        source=report.source,
        name=Path(report.source).name or report.source,
        worst=worst,
        verdict=VERDICTS[worst],
        tally=[(word, count) for word, count in tally if count],
        findings=findings,
        quality=quality,
        reading=reading,
        files=_first(reading.files),
        ignored=_first(list(reading.ignored_columns.items())),
        problems=bars(reading.problems_by_code, reading.bad_rows),
        lengths=_lengths(quality, tokens),
        keeping=_keeping(tokens.too_long) if tokens and tokens.rows and not tokens.too_long.count else "",
        figures=_figures(quality, tokens),
        tokens=tokens,
        refused=bars(tokens.refusals.by_reason, tokens.rows + tokens.refusals.count) if tokens else None,
        notes=bars(tokens.notes, tokens.rows) if tokens else None,
        classes=bars(quality.classes.counts, quality.classes.covered) if quality.classes else None,
        formats=bars(quality.formats.counts, sum(quality.formats.counts.values())),
        languages=_languages(quality.languages),
        personal=_personal(quality),
        repetition=_repetition(quality, report.near),
        near=report.near,
        contamination=contamination,
        contaminated=_first(contamination.rows, MANY) if contamination else None,
        diversity=_diversity(quality.diversity),
    )
    write_text(path, page)


def bars(counts: Mapping[str, int], of: int, title: str = "") -> BarTable:
    """Counts as a table with bars, the longest first; shares are of ``of``."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    lines, left = _first([(label, count, count / of if of else 0.0) for label, count in ranked])
    return BarTable(lines, left, title)


def _first(items: Sequence[T], limit: int = LONG) -> tuple[Sequence[T], int]:
    """The first items and the number of those left out."""
    return items[:limit], max(0, len(items) - limit)


def _findings(report: CheckReport) -> list[CheckFinding]:
    """The quality report's findings and those of the other parts, the worst first."""
    findings = [*report.quality.findings, *_reading_findings(report.reading)]
    if report.tokens is not None:
        findings += _token_findings(report.tokens)
    if report.contamination is not None:
        findings += _contamination_findings(report.contamination)
    if report.near is not None:
        findings += _near_findings(report.near, report.quality.rows)
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.share))


def _reading_findings(reading: Reading) -> list[CheckFinding]:
    if not reading.bad_rows:
        return []
    codes = ", ".join(f"{code} {count:,}" for code, count in list(reading.problems_by_code.items())[:SHOWN])
    finding = CheckFinding(
        code="bad-rows",
        severity="wrong",
        text="rows that are not valid examples",
        count=reading.bad_rows,
        of=reading.rows + reading.bad_rows,
        hint=f"By code: {codes}. Training refuses such a file, or sets these rows aside with data.on_bad_row: quarantine.",
    )
    return [finding]


def _token_findings(tokens: TokenReport) -> list[CheckFinding]:
    findings: list[CheckFinding] = []
    refusals, too_long = tokens.refusals, tokens.too_long
    if refusals.count:
        refusal = CheckFinding(
            code="template-refuses",
            severity="wrong",
            text="rows that the chat template refuses",
            count=refusals.count,
            of=tokens.rows + refusals.count,
            hint="The model's template cannot hold these rows as they are: mend them, or name another in chat.template.",
            examples=refusals.examples[:SHOWN],
        )
        findings.append(refusal)
    if too_long.count:
        long = CheckFinding(
            code="too-long",
            severity="wrong",
            text=f"rows longer than max_length ({tokens.max_length:,} tokens)",
            count=too_long.count,
            of=tokens.rows,
            hint=f"{_keeping(too_long)} Raise it, shorten these rows, or choose data.on_too_long: nothing is cut silently.",
            examples=tuple(_example(row, f"{row.length:,} tokens") for row in too_long.examples[:SHOWN]),
        )
        findings.append(long)
    return findings


def _example(row: RowLength | RowExcerpt, excerpt: str) -> RowExcerpt:
    return RowExcerpt(id=row.id, place=row.place, excerpt=excerpt)


def _keeping(too_long: TooLong) -> str:
    return f"max_length {limits(too_long.keep)} of the rows."


def _contamination_findings(contamination: ContaminationReport) -> list[CheckFinding]:
    rows = contamination.rows
    if not rows:
        return []
    items = f"{contamination.items_found:,} of the items of {contamination.benchmark}"
    finding = CheckFinding(
        code="contamination",
        severity="wrong",
        text="rows that share a long passage with the benchmark",
        count=len(rows),
        of=contamination.rows_read,
        hint=f"The rows may give away {items}: a score on it would be void. Remove them before you measure with it.",
        examples=tuple(RowExcerpt(id=row.row, place=row.place, excerpt=row.excerpt) for row in rows[:SHOWN]),
    )
    return [finding]


def _near_findings(near: NearReport, rows: int) -> list[CheckFinding]:
    if not near.clusters:
        return []
    hint = f"{near.clusters:,} clusters: one row of each would leave {near.rows_left:,} rows. The split keeps each whole."
    if near.unlike_answers:
        hint += f" In {near.unlike_answers:,} the answers differ: fine distinctions, or errors?"
    first = [(cluster.rows, cluster.examples[0]) for cluster in near.largest]
    finding = CheckFinding(
        code="near-duplicates",
        severity="suspect",
        text="rows whose question is nearly that of another row",
        count=near.rows,
        of=rows,
        hint=hint,
        examples=tuple(_example(row, f"{count:,} rows: {row.excerpt}") for count, row in first[:SHOWN]),
    )
    return [finding]


def _lengths(quality: QualityReport, tokens: TokenReport | None) -> list[tuple[str, str, Lengths]]:
    """(what, unit, figures) for each kind of length."""
    lengths = quality.lengths
    lines = [("row", "tokens", tokens.lengths)] if tokens and tokens.rows else []
    lines += [
        ("row", "characters", lengths.whole),
        ("prompt", "characters", lengths.prompt),
        ("answer", "characters", lengths.answer),
        ("answer", "words", lengths.answer_words),
    ]
    return [line for line in lines if line[2].count]


def _figures(quality: QualityReport, tokens: TokenReport | None) -> list[Figure]:
    """Pictures with their captions. One bar is no picture: what is the same in all rows stands in the tables."""
    lengths, figures = quality.lengths, list[Figure]()
    whole = lengths.whole
    if tokens and tokens.rows:
        over = tokens.too_long.count
        caption = f"Tokens of {tokens.rows:,} rows under {tokens.model}."
        if tokens.max_length is not None:
            caption += f" {over:,} are longer than max_length." if over else " None is longer than max_length."
        figures.append(Figure(length_figure(tokens.lengths, "tokens a row", tokens.max_length), caption))
    elif whole.histogram.spread:
        figures.append(Figure(length_figure(whole, "characters a row"), f"All turns together, {whole.count:,} rows."))
    for length, text in ((lengths.prompt, "characters before the answer"), (lengths.answer, "characters of the answer")):
        # A plain text has no prompt, and its answer is the whole.
        if length.histogram.spread and lengths.prompt.count:
            figures.append(Figure(length_figure(length, text), f"{text[0].upper()}{text[1:]}, {length.count:,} rows."))
    if tokens and len(tokens.supervised_histogram.counts) > 1:
        caption = f"{100 * tokens.supervised_share:.1f} % of all tokens are trained on; the picture shows it row by row."
        figures.append(Figure(share_figure(tokens.supervised_histogram, "supervised tokens of a row"), caption))
    for counts, text in (
        (quality.turns, "turns a row, without system turns"),
        (quality.supervised_turns, "supervised turns a row"),
    ):
        if len(counts) > 1:
            caption = f"{text[0].upper()}{text[1:]}, {sum(counts.values()):,} rows."
            figures.append(Figure(count_figure(counts, text), caption))
    return figures


def _languages(languages: Languages) -> list[BarTable]:
    tables = []
    for part, judged, shares in (
        ("prompts", languages.judged_prompts, languages.prompts),
        ("answers", languages.judged_answers, languages.answers),
    ):
        counts = {language: round(share * judged) for language, share in shares.items()}
        if counts:
            title = f"{part}: {judged:,} of {languages.sampled:,} sampled rows were long enough to judge"
            tables.append(bars(counts, judged, title))
    return tables


def _personal(quality: QualityReport) -> BarTable:
    counts = {
        finding.text.removeprefix(_PERSONAL): finding.count
        for finding in quality.findings
        if finding.text.startswith(_PERSONAL)
    }
    return bars(counts, quality.rows)


def _repetition(quality: QualityReport, near: NearReport | None) -> list[tuple[str, int, float]]:
    """Rows that say something new, against all; nothing where every row does."""
    rows, duplicates, prompts = quality.rows, quality.duplicates, quality.prompts
    near_left = near.rows_left if near and near.clusters else rows
    if not duplicates.rows and near_left == rows and prompts.distinct == prompts.rows:
        return []
    lines = [("rows", rows), ("distinct rows", duplicates.distinct)]
    if prompts.rows:
        lines += [("distinct prompts", prompts.distinct)]
    if near_left < rows:
        lines += [("rows left with one of each near-duplicate cluster", near_left)]
    if prompts.conflicting_rows:
        lines += [("rows whose prompt has more than one answer", prompts.conflicting_rows)]
    return [(label, count, count / rows) for label, count in lines]


def _diversity(measured: Diversity) -> list[tuple[str, TextDiversity]]:
    """(part, figures) where both could be measured."""
    return [
        (part, figures)
        for part, figures in (("prompts", measured.prompts), ("answers", measured.answers))
        if figures.distinct_4 is not None and figures.compression_ratio is not None
    ]
