"""The quality report: what is in the rows, as counted in one pass; a part of ``check --json`` and ``data/report.json``.

A row is named by its id and its place in the file, since a person who reads of a fault opens the file next. Shares are of 1,
lengths are characters where nothing else is said, and tables by name (formats, classes, languages) put the most frequent first.
Texts of rows are excerpts with secrets masked: a report is read by more people than the data.
"""

from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import Record

Severity = Literal["wrong", "suspect", "note"]


@dataclass(frozen=True, kw_only=True)
class RowPlace(Record):
    """Which row.

    Attributes:
        id: of the row.
        place: where it stands in the source, such as ``line 12``.
    """

    id: str
    place: str


@dataclass(frozen=True, kw_only=True)
class RowExcerpt(RowPlace):
    """A row to look at.

    Attributes:
        excerpt: a few characters of it, or what is wrong with it; empty where the place alone says it.
        same_as: the earlier row that it repeats or contradicts.
    """

    excerpt: str = ""
    same_as: RowPlace | None = None


@dataclass(frozen=True, kw_only=True)
class RowLength(RowPlace):
    """A long row.

    Attributes:
        length: in the unit of the table that it stands in.
    """

    length: int


@dataclass(frozen=True, kw_only=True)
class Histogram(Record):
    """Counts of values in bins; both empty without values.

    Attributes:
        edges: one more than ``counts``, rising; a bin holds ``edges[i] <= value < edges[i + 1]``.
        counts: values in each bin.
    """

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def spread(self) -> bool:
        """Whether the values fill more than one bin."""
        return sum(count > 0 for count in self.counts) > 1


@dataclass(frozen=True, kw_only=True)
class Lengths(Record):
    """Order statistics of one kind of length; all 0 where ``count`` is.

    Attributes:
        count: rows that have such a length.
        min, median, p95, p99, max: values that occur, none interpolated.
        histogram: of all of them.
        longest: the ten longest rows.
    """

    count: int
    min: int = 0
    median: int = 0
    p95: int = 0
    p99: int = 0
    max: int = 0
    histogram: Histogram = Histogram()
    longest: tuple[RowLength, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckFinding(Record):
    """One thing that a person should look at.

    Attributes:
        code: stable name, such as ``exact-duplicates``.
        severity: ``wrong`` (these rows teach something false, or leak), ``suspect`` (look at them), ``note``.
        text: one sentence without the number of rows.
        count: rows concerned.
        of: rows that could have been.
        hint: the next thing to do.
        examples: up to 20, the worst first where there is a worst.
    """

    code: str
    severity: Severity
    text: str
    count: int
    of: int
    hint: str
    examples: tuple[RowExcerpt, ...] = ()

    @property
    def share(self) -> float:
        """Part of the rows concerned, 0 to 1."""
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True, kw_only=True)
class SingleTurn(Record):
    """Chat rows of one question and one answer.

    Attributes:
        count: such rows.
        share: of the chat rows.
        note: says so where all are.
    """

    count: int
    share: float
    note: str


@dataclass(frozen=True, kw_only=True)
class QualityLengths(Record):
    """Lengths of a row and its parts.

    Attributes:
        prompt: characters before the answer.
        answer: characters of the answer.
        whole: characters of all turns.
        answer_words: words of the answer.
    """

    prompt: Lengths
    answer: Lengths
    whole: Lengths
    answer_words: Lengths


@dataclass(frozen=True, kw_only=True)
class Duplicates(Record):
    """Exact copies.

    Attributes:
        rows: that repeat an earlier one.
        distinct: rows that do not.
    """

    rows: int
    distinct: int


@dataclass(frozen=True, kw_only=True)
class Prompts(Record):
    """Prompts of the distinct chat rows.

    Attributes:
        rows: rows that have one.
        distinct: up to case and white space.
        conflicting_prompts: prompts with more than one answer.
        conflicting_rows: rows of these.
    """

    rows: int = 0
    distinct: int = 0
    conflicting_prompts: int = 0
    conflicting_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class AnswerFormats(Record):
    """Formats of the answers.

    Attributes:
        counts: answers of each.
        majority: the format that at least 60 % of them have (tool calls apart), or None.
    """

    counts: dict[str, int]
    majority: str | None


@dataclass(frozen=True, kw_only=True)
class JsonKey(Record):
    """A key of JSON answers.

    Attributes:
        share: of the objects that have it.
        types: answers by the type of its value.
    """

    share: float
    types: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class JsonShapes(Record):
    """Keys of the answers that are JSON objects.

    Attributes:
        objects: such answers.
        key_sets: different sets of keys.
        common_keys: the commonest set.
        common_share: of the objects that have exactly this.
        keys: the 50 commonest, each with its presence and types.
        not_judged: answers too large, or too unlike one another, to be told apart.
    """

    objects: int
    key_sets: int
    common_keys: tuple[str, ...]
    common_share: float
    keys: dict[str, JsonKey]
    not_judged: int


@dataclass(frozen=True, kw_only=True)
class Classes(Record):
    """Short answers that repeat: classes.

    Attributes:
        counts: rows of each.
        covered: answers that are one of them.
        majority_share: of the largest.
        entropy_bits: of the shares.
        entropy_share: by the largest possible; 1 is even.
        below_10: classes with fewer than 10 rows.
    """

    counts: dict[str, int]
    covered: int
    majority_share: float
    entropy_bits: float
    entropy_share: float
    below_10: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Languages(Record):
    """Languages (ISO 639) of a sample.

    Attributes:
        sampled: rows in it.
        judged_prompts, judged_answers: texts that are long enough to judge.
        prompts, answers: share of the judged by language.
    """

    sampled: int
    judged_prompts: int
    judged_answers: int
    prompts: dict[str, float]
    answers: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TextDiversity(Record):
    """How varied texts are.

    Attributes:
        distinct_4: share of word 4-grams that differ; None without any.
        compression_ratio: bytes by their compressed bytes; None without any.
    """

    distinct_4: float | None
    compression_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Diversity(Record):
    """How varied the sample's prompts and answers are.

    Attributes:
        sampled: rows in it.
        prompts, answers: their figures.
        meaning: what low figures mean, for people.
    """

    sampled: int
    prompts: TextDiversity
    answers: TextDiversity
    meaning: str


@dataclass(frozen=True, kw_only=True)
class SizeAdvice(Record):
    """What the number of rows allows.

    Attributes:
        band: of sizes, by its name.
        rows: distinct ones.
        test_rows: that the split holds out.
        detectable_gain: the smallest gain that they can prove, a fraction; None where they prove nothing.
        sentences: the advice, one paragraph an entry.
    """

    band: str
    rows: int
    test_rows: int
    detectable_gain: float | None
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QualityReport(Record):
    """What is in the rows.

    Attributes:
        rows: all of them.
        chat_rows, text_rows: conversations, and plain texts.
        turns, supervised_turns: chat rows by their number of turns (system turns apart), and of turns that are trained on.
        single_turn: conversations of one question.
        supervised_share: assistant characters by all characters.
        lengths: of rows, prompts and answers.
        duplicates: exact copies.
        prompts: repeated prompts and conflicting answers.
        formats: of the answers.
        json: keys of answers that are JSON objects; None without any.
        classes: class balance; None where answers are no classes.
        languages: of a sample.
        diversity: of a sample.
        advice: by the number of rows.
        findings: the worst first.
    """

    rows: int
    chat_rows: int
    text_rows: int
    turns: dict[str, int]
    supervised_turns: dict[str, int]
    single_turn: SingleTurn
    supervised_share: float
    lengths: QualityLengths
    duplicates: Duplicates
    prompts: Prompts
    formats: AnswerFormats
    json: JsonShapes | None
    classes: Classes | None
    languages: Languages
    diversity: Diversity
    advice: SizeAdvice
    findings: tuple[CheckFinding, ...]
