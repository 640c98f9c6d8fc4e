"""``check --json``, ``data/report.json`` and ``data/rejected.jsonl``: what is known of rows before anybody trains on them.

One record holds it all, whoever asks (the verb ``check``, the stage ``data``, the verb ``init``); a part that was not asked for
is None. What is in the rows themselves stands in ``quality``.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.rundir.records.base import FileRecord, Record
from tunesmith.rundir.records.quality import CheckFinding, Histogram, Lengths, QualityReport, RowExcerpt, RowLength


@dataclass(frozen=True, kw_only=True)
class IgnoredColumn(Record):
    """A column that nothing reads.

    Attributes:
        rows: in which it is filled.
        nearest: the known name that is nearest to its own, or None.
    """

    rows: int
    nearest: str | None


@dataclass(frozen=True, kw_only=True)
class Reading(Record):
    """How a source was read.

    Attributes:
        rows: good ones.
        bad_rows: set aside.
        problems_by_code: bad rows by what is wrong with them.
        format: of the rows; None without any.
        kinds: rows of each format, bad ones included.
        files: names.
        ignored_columns: by name.
        notes: sentences for people.
        left_out: rows in which a column holds a part of the question or its answer that nothing reads, by the column's name.
        left_out_named: options that name the columns with these; empty where there are none.
    """

    rows: int
    bad_rows: int
    problems_by_code: dict[str, int]
    format: str | None
    kinds: dict[str, int]
    files: tuple[str, ...]
    ignored_columns: dict[str, IgnoredColumn]
    notes: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    left_out_named: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversion(Record):
    """What ``convert`` did.

    Attributes:
        reading: how the source was read.
        written: the file.
        findings: what its rows mean that their author may not have meant; ``check`` looks for more.
    """

    reading: Reading
    written: str
    findings: tuple[CheckFinding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RowProblem(Record):
    """What is wrong with a row.

    Attributes:
        path: JSON path of the value, ``$`` for the whole row.
        code: stable name of the kind of problem.
        message: what stands there, and what was expected.
        hint: the next thing to do.
    """

    path: str
    code: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class RejectedRow(Record):
    """A line of ``data/rejected.jsonl``: a bad row with its reasons.

    Attributes:
        place: as ``RowPlace.place``.
        problems: what is wrong with it.
        raw: its text; None where the file has no text of a row.
        row: its value then.
    """

    place: str
    problems: tuple[RowProblem, ...]
    raw: str | None = None
    row: Any = None


@dataclass(frozen=True, kw_only=True)
class NearCluster(Record):
    """Some near duplicates.

    Attributes:
        rows: how many rows, exact copies included.
        questions: how many different questions among them.
        answers: how many different answers (normalized): 1 where all agree.
        examples: the first few with different questions, in order of reading.
    """

    rows: int
    questions: int
    answers: int
    examples: tuple[RowExcerpt, ...]


@dataclass(frozen=True, kw_only=True)
class NearReport(Record):
    """Questions that are nearly those of other rows.

    Attributes:
        threshold: Jaccard similarity from which two questions are near.
        recall: probability that a pair right at the threshold is compared at all.
        exact: pairs were judged by their exact similarity, not by the signatures' estimate.
        template_windows: windows set aside because nearly all questions hold them.
        clusters: number of clusters of at least two different questions.
        rows: rows in them.
        rows_left: rows of the data set that would be left if one row of each cluster were kept.
        unlike_answers: clusters whose answers are not all the same.
        largest: the largest ones.
    """

    threshold: float
    recall: float
    exact: bool
    template_windows: int
    clusters: int
    rows: int
    rows_left: int
    unlike_answers: int
    largest: tuple[NearCluster, ...]


@dataclass(frozen=True, kw_only=True)
class SharedPassage(Record):
    """A row and the longest passage that it shares with the benchmark.

    Attributes:
        row, place: id and place of the training row.
        item: id of the benchmark item.
        items: number of items that hold the anchor by which it was found: above 1 it is likely an instruction.
        characters: normalised characters shared.
        excerpt: the passage as the item writes it, at most 200 characters of it.
    """

    row: str
    place: str
    item: str
    items: int
    characters: int
    excerpt: str


@dataclass(frozen=True, kw_only=True)
class ContaminationReport(Record):
    """Rows that give away items of a benchmark.

    Attributes:
        benchmark: its file.
        items: items of the benchmark.
        too_short: of these, how many are too short to be looked for.
        items_found: items with a shared passage (a passage of several items counts for the first).
        rows_read: training rows read.
        rows: the contaminated ones, longest passage first.
    """

    benchmark: str
    items: int
    too_short: int
    items_found: int
    rows_read: int
    rows: tuple[SharedPassage, ...]


@dataclass(frozen=True, kw_only=True)
class TooLong(Record):
    """Rows above ``max_length``.

    Attributes:
        count: such rows; 0 where no limit was named.
        examples: the first 20.
        keep: the ``max_length`` that keeps 95, 99 and 100 % of the rows, by the percentage.
    """

    count: int
    examples: tuple[RowLength, ...]
    keep: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Refusals(Record):
    """Rows that the template refuses.

    Attributes:
        count: such rows.
        by_reason: rows by what it says of them.
        examples: the first 20, each with its reason.
    """

    count: int
    by_reason: dict[str, int]
    examples: tuple[RowExcerpt, ...]


@dataclass(frozen=True, kw_only=True)
class TokenReport(Record):
    """What rendering with a model's template says of the rows.

    Attributes:
        model: whose template and tokenizer.
        max_length: the limit that was named, or None.
        rows: rendered ones.
        lengths: in tokens.
        supervised_share: supervised tokens by all tokens.
        supervised_histogram: of that share, row by row.
        too_long: rows above the limit.
        notes: rows by what the template did to them.
        refusals: rows that it cannot hold.
    """

    model: str
    max_length: int | None
    rows: int
    lengths: Lengths
    supervised_share: float
    supervised_histogram: Histogram
    too_long: TooLong
    notes: dict[str, int]
    refusals: Refusals


@dataclass(frozen=True, kw_only=True)
class CheckReport(FileRecord):
    """What ``check`` says of data; ``check --json`` prints it.

    Attributes:
        source: file, directory or hub id.
        reading: how it was read.
        quality: what is in the rows.
        headlines: the quality report in short, a line an entry.
        near: near duplicates; None, as the two below, where not asked for.
        contamination: what the rows share with a benchmark.
        tokens: what a model's template makes of the rows.
    """

    source: str
    reading: Reading
    quality: QualityReport
    headlines: tuple[str, ...]
    near: NearReport | None = None
    contamination: ContaminationReport | None = None
    tokens: TokenReport | None = None


@dataclass(frozen=True, kw_only=True)
class DataReport(FileRecord):
    """``data/report.json``: what the stage ``data`` read, and how it split the rows.

    Attributes:
        rows: all of them.
        train, dev, test: rows of each part.
        leaks: test rows that have a near duplicate in the train part, or stand whole inside a train row.
        repeated_prompts: rows that repeat an earlier prompt, conversation or group, and stay on its side of the split.
        check: what is in the rows.
        inside: those of the leaks that stand whole inside a train row.
        dev_leaks: dev rows that leak so.
        split: whether the parts were drawn, or were there.
        seen: rows that the tuned model was trained on, or that are near to such a row; None where nobody said which.
        kept_out: of them, and of their groups, those that were drawn into dev or test and went to train.
        trained: rows that are trained on, with their repetitions; None where each is, once.
    """

    rows: int
    train: int
    dev: int
    test: int
    leaks: int
    repeated_prompts: int
    check: CheckReport
    inside: int = 0
    dev_leaks: int = 0
    split: Literal["drawn", "given"] = "drawn"
    trained: int | None = None
    seen: int | None = None
    kept_out: int | None = None
