"""Whether exported forms are what was trained, and which type to deploy: ``export/parity.json``, ``export/sweep.json``."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tunesmith.formatting import percent
from tunesmith.notebook import paragraph, table
from tunesmith.rundir.records.base import FileRecord, Record

CheckState = Literal["pass", "fail", "unknown", "shown"]
FormState = Literal["deployable", "unknown", "not deployable"]
EXIT_CODES: dict[FormState, int] = {"deployable": 0, "unknown": 12, "not deployable": 14}


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One check of a form.

    Attributes:
        state: ``fail`` alone makes a form not deployable; ``unknown`` could not be told, ``shown`` has no bound.
        summary: the numbers, in words.
    """

    state: CheckState
    summary: str


@dataclass(frozen=True, kw_only=True)
class Figures(Record):
    """A form beside the reference, over all positions.

    Attributes:
        positions: of the next token that were compared.
        kl_mean, kl_max: KL(tuned || form), nats; None where not finite.
        kl_from_base: mean KL(base || form), nats; None where not finite.
        agreement: share of positions with the same greedy choice.
        agreement_or_tie: the same, a choice counted that the reference holds for as likely within 0.02 nats.
    """

    positions: int
    kl_mean: float | None
    kl_max: float | None
    kl_from_base: float | None
    agreement: float
    agreement_or_tie: float


@dataclass(frozen=True, kw_only=True)
class Divergence(Record):
    """The first position with another greedy choice.

    Attributes:
        prompt: its name.
        position: in the answer, from 0.
        question: the last message of the prompt.
        so_far: the answer up to there.
        reference, form: what each says next.
        lag: how much less likely the reference holds the form's choice than its own, nats.
        tie: whether that is as likely, to rounding.
    """

    prompt: str
    position: int
    question: str
    so_far: str
    reference: str
    form: str
    lag: float
    tie: bool


@dataclass(frozen=True, kw_only=True)
class TaskScore(Record):
    """The task's figure on dev rows, paired with the reference's.

    Attributes:
        score: 0 to 1.
        gain, low, high: score less the reference's, with its 95 % interval.
        n: rows compared.
    """

    score: float
    gain: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class FormParity(Record):
    """What parity says of one form.

    Attributes:
        form: ``merged``, a llama.cpp type, ``LoRA``.
        file: its name.
        state: ``unknown`` where a form that differs by design was not shown to do the task as well.
        reason: why it is not deployable, or not known to be.
        checks: by name.
        figures: of the distribution; None where it could not be opened.
        divergence: the first; None where every choice agrees.
        control_tokens: names of the prompts whose control tokens in a user's text its engine parses.
        task: of the dev rows; None where no task was compared.
    """

    form: str
    file: str
    state: FormState
    reason: str
    checks: dict[str, Check]
    figures: Figures | None = None
    divergence: Divergence | None = None
    control_tokens: tuple[str, ...] = ()
    task: TaskScore | None = None

    @property
    def deployable(self) -> bool:
        """Whether it is known to be what was trained, or to do the task as well."""
        return self.state == "deployable"

    @property
    def failures(self) -> list[str]:
        """Names of the checks that it fails."""
        return [name for name, check in self.checks.items() if check.state == "fail"]


@dataclass(frozen=True, kw_only=True)
class ParityMetric(Record):
    """The task that the forms were asked.

    Attributes:
        name: of the metric; None where no task was compared.
        n: dev rows.
        score: the reference's.
        margin: largest loss that is accepted.
        reason: why no task was compared; None where one was.
    """

    name: str | None = None
    n: int = 0
    score: float | None = None
    margin: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parity(FileRecord):
    """``export/parity.json``.

    Attributes:
        deployed: name of the form that the recipe deploys.
        arithmetic: that models in process computed in.
        prompts: names.
        left_out: prompt -> why it was not asked.
        positions: of the next token, over all prompts.
        adapter_kl: mean KL(tuned || base), nats.
        metric: the task that the forms were asked.
        forms: in the order in which the export lists them.
    """

    VERSION: ClassVar[int] = 1

    deployed: str
    arithmetic: str
    prompts: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    positions: int
    adapter_kl: float
    metric: ParityMetric
    forms: tuple[FormParity, ...]

    @property
    def state(self) -> FormState:
        """The worst of its forms."""
        states = {form.state for form in self.forms}
        return "not deployable" if "not deployable" in states else "unknown" if "unknown" in states else "deployable"

    @property
    def exit_code(self) -> int:
        """Of the verb."""
        return EXIT_CODES[self.state]

    @property
    def deployed_form(self) -> FormParity | None:
        """The entry of the form that the recipe deploys."""
        return next((form for form in self.forms if form.form == self.deployed), None)

    def _repr_html_(self) -> str:
        """Every form with its state, its checks and the reason where it is not deployable."""
        names = list(dict.fromkeys(name for form in self.forms for name in form.checks))
        rows = [
            (form.form, form.state, *(form.checks[name].state if name in form.checks else "" for name in names), form.reason)
            for form in self.forms
        ]
        measured = f"{len(self.prompts)} prompts, {self.positions} positions, reference in {self.arithmetic}"
        return paragraph(measured, self.state) + table(("form", "state", *names, "reason"), rows)


@dataclass(frozen=True, kw_only=True)
class SweepType(Record):
    """One type of a sweep: its file, and its answers to the dev rows against the tuned model's.

    Attributes:
        type: llama.cpp's name.
        bytes: of the file.
        bits_per_weight: as measured.
        task: score and difference.
        state: of the check of non-inferiority.
        summary: that check in words.
    """

    type: str
    bytes: int
    bits_per_weight: float
    task: TaskScore
    state: CheckState
    summary: str


@dataclass(frozen=True, kw_only=True)
class Sweep(FileRecord):
    """``export/sweep.json``.

    Attributes:
        types: the largest file first.
        tuned: score of the model as it was trained.
        n: dev rows.
        margin: largest loss that is accepted.
        metric: its name.
        imatrix: whether columns were weighed by an importance matrix.
        recommended: the smallest type that is non-inferior; None where none is.
        reason: why that one, or why none.
    """

    VERSION: ClassVar[int] = 1

    types: tuple[SweepType, ...]
    tuned: float
    n: int
    margin: float
    metric: str
    imatrix: bool
    recommended: str | None
    reason: str

    def _repr_html_(self) -> str:
        """The types, largest file first, and the one to take."""
        rows = [
            (entry.type, f"{entry.bytes / 1e6:,.1f}", f"{entry.bits_per_weight:.2f}", percent(entry.task.score), entry.summary)
            for entry in self.types
        ]
        head = ("type", "MB", "bits a weight", "score", "against the tuned model")
        return paragraph(self.reason, f"recommended: {self.recommended or 'none of them'}:") + table(head, rows)
