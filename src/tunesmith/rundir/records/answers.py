"""Answers of an arm, row by row, and their figures.

    <arm>/outputs.jsonl   an ``Output`` a line
    <arm>/scores.json     ``Scores``

Scores and shares are fractions of 1. A score of None is an unscored row or arm (a judge that gave no verdict); it is in no
mean. ``figures`` holds a metric's own figures by name, as many as the metric has.
"""

from dataclasses import dataclass

from tunesmith.messages import Message
from tunesmith.notebook import table
from tunesmith.rundir.records.base import FileRecord, Record
from tunesmith.rundir.records.calls import Calls

Figures = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Output(Record):
    """One answer of an arm, with all that its score follows from.

    Attributes:
        id: of the row.
        prompt: the messages that were asked.
        output: the answer.
        reference: what it is scored against.
        score: the headline of the metric.
        figures: the metric's own figures beside it.
        prompt_tokens, new_tokens: as the engine counted them.
        seconds: wall time.
        finished: whether the model ended its turn itself.
        cost: in the currency of the recipe's prices; None without one.
        calls: the tool calls in the answer, where they were read.
        free: whether the model says the same when nothing constrains it; None: not known.
    """

    id: str
    prompt: list[Message]
    output: str
    reference: str
    score: float | None
    figures: Figures
    prompt_tokens: int
    new_tokens: int
    seconds: float
    finished: bool
    cost: float | None = None
    calls: Calls | None = None
    free: bool | None = None


class Outputs(list[Output]):
    """What an arm answered, row by row; a notebook shows the first of them."""

    SHOWN = 20

    def _repr_html_(self) -> str:
        rows = [
            (row.id, str(row.prompt[-1]["content"]), row.output, row.reference, "" if row.score is None else f"{row.score:g}")
            for row in self[: self.SHOWN]
        ]
        more = len(self) - len(rows)
        caption = f"{len(self):,} rows" + (f", the first {len(rows)} of them" if more else "")
        return table(("row", "question", "answer", "reference", "score"), rows, caption)


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """Figures of a set of answers.

    Attributes:
        name: of the arm, or of the candidate among prompts.
        n: rows.
        unscored: rows among them without a score.
        score: the metric's headline over the scored rows.
        figures: mean of each of the metric's own figures over the rows that have it.
        prompt_tokens, new_tokens: means a row.
        finished: share of answers that the model ended itself.
        ms: milliseconds an answer.
        cost: mean of an answer; None without a price.
    """

    name: str
    n: int
    unscored: int
    score: float | None
    figures: Figures
    prompt_tokens: float
    new_tokens: float
    finished: float
    ms: float
    cost: float | None = None

    @property
    def cut(self) -> int:
        """Answers that were cut at the limit of tokens."""
        return round(self.n * (1.0 - self.finished))


@dataclass(frozen=True, kw_only=True)
class Scores(FileRecord):
    """An arm's figures.

    Attributes:
        key: fingerprint of everything that the answers follow from.
        summary: the figures.
    """

    key: str
    summary: Summary
