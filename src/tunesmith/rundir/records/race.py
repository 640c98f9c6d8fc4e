"""``race/race.json``: several base models, tried on a few rows each."""

from dataclasses import dataclass

from tunesmith.formatting import percent, points_between
from tunesmith.notebook import paragraph, table
from tunesmith.rundir.records.base import FileRecord, Record
from tunesmith.rundir.records.evaluation import Comparison


@dataclass(frozen=True, kw_only=True)
class RaceScore(Record):
    """A score on dev rows.

    Attributes:
        score: the metric's headline, 0 to 1.
        low, high: its 95 % interval.
    """

    score: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """As a table shows it: ``84.0 77.9-88.7``."""
        return f"{percent(self.score)} {percent(self.low)}-{percent(self.high)}"


@dataclass(frozen=True, kw_only=True)
class RaceModel(Record):
    """A base model in a race.

    Attributes:
        model: as it was named.
        why_not: why it is out; None where it went all the way, and then everything below is known but what has a word.
        prompt: the best prompt on dev, before any training, on rows that did not choose it.
        tuned: after the training.
        against: the tuned model against the leader's, paired by row; None for the leader.
        memory: peak bytes of the training: of the GPU where there is one, else of the process.
        train_seconds: of the training, evaluations of dev loss included.
        tokens_per_second: of its steps; None where no step was needed. Tokens are the model's own.
        answer_ms: milliseconds that the tuned model takes for an answer.
    """

    model: str
    why_not: str | None = None
    prompt: RaceScore | None = None
    tuned: RaceScore | None = None
    against: Comparison | None = None
    memory: int | None = None
    train_seconds: float | None = None
    tokens_per_second: float | None = None
    answer_ms: float | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        if self.why_not is not None or self.prompt is None or self.tuned is None:
            return (self.model, "", "", "", "", "", "")
        against = "leads" if self.against is None else points_between(self.against.low, self.against.high)
        speed = "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f}"
        memory = "" if self.memory is None else f"{self.memory / 1e9:.2f}"
        answer = "" if self.answer_ms is None else f"{self.answer_ms:,.0f}"
        return (self.model, self.prompt.words, self.tuned.words, against, memory, speed, answer)


RACE_COLUMNS = ("model", "prompt, 95 %", "tuned, 95 %", "95 % of gain", "GB", "tok/s", "ms")


@dataclass(frozen=True, kw_only=True)
class BaseRace(FileRecord):
    """Which base model to tune, as far as so few rows can tell.

    Attributes:
        metric: of the task.
        train_rows, dev_rows: on which every model was trained, and asked.
        models: the best tuned score first, those that are out last.
        reason: one sentence: who leads, and who is not shown to be worse.
    """

    metric: str
    train_rows: int
    dev_rows: int
    models: tuple[RaceModel, ...]
    reason: str

    @property
    def leader(self) -> RaceModel:
        """The model with the best tuned score on dev."""
        return self.models[0]

    def _repr_html_(self) -> str:
        """The models as a table, and why others are out."""
        heading = f"{self.metric} on {self.dev_rows} dev rows, trained on {self.train_rows}"
        rows = [model.cells for model in self.models if model.why_not is None]
        out = "".join(paragraph(f"{model.model} is out: {model.why_not}") for model in self.models if model.why_not)
        return table(RACE_COLUMNS, rows, heading) + paragraph(self.reason) + out
