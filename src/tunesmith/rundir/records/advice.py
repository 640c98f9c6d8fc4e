"""``advice.json``: whether to tune at all, the checklist that says so, and every number that the rules saw.

The rules (``tunesmith.advise``) see ``Facts`` and nothing else: no file, no model, no clock. That makes an advice a function of
its evidence, so it can be written down, tested row by row and made again. What was not measured is None, never a guess: a
rule answers ``unknown`` to it.
"""

from dataclasses import dataclass, field
from typing import Literal

from tunesmith.notebook import paragraph, table
from tunesmith.rundir.records.base import FileRecord, Record
from tunesmith.rundir.records.evidence import CrossFit

State = Literal["pass", "stop", "unknown"]
Ending = Literal["tune", "prompt is enough", "use retrieval", "collect more rows"]
Device = Literal["gpu", "cpu", "unknown"]


@dataclass(frozen=True, kw_only=True)
class RowFacts(Record):
    """The examples, as the quality report counts them.

    Attributes:
        rows: all of them.
        distinct: without exact copies.
        prompts: distinct prompts, None for plain text.
        conflicting: rows whose prompt is answered differently elsewhere.
        distinct_4: share of distinct word 4-grams in the sampled prompts, 0 to 1; None where they are too short to have any.
        compression: bytes of the sampled prompts by their compressed bytes.
        sampled: rows in that sample.
        train, dev, test: rows of each part.
        split: whether the split is made (False: by the recipe's fractions).
        tokens, supervised: tokens of the train part, and those among them that are answers.
        counted: whether the model's tokenizer counted them (False: a quarter of the characters).
    """

    rows: int
    distinct: int
    prompts: int | None
    conflicting: int
    distinct_4: float | None
    compression: float | None
    sampled: int
    train: int
    dev: int
    test: int
    split: bool
    tokens: float
    supervised: float
    counted: bool

    @property
    def effective(self) -> int:
        """Distinct rows, or distinct prompts where there are fewer of them."""
        return self.distinct if self.prompts is None else min(self.distinct, self.prompts)


@dataclass(frozen=True, kw_only=True)
class MetricFacts(Record):
    """The metric and what this many rows can tell with it.

    Attributes:
        name: ``task.metric``.
        tried: references that were scored against themselves; all of them scored 1.
        calibrated: whether a judge agrees with people, as measured; None for a deterministic metric.
        judge: why, or why not; empty for a deterministic metric.
        min_gain: ``task.min_gain``, a fraction.
        planned: the gain that test rows are planned for, twice ``min_gain``; a fraction.
        detectable: smallest true gain that the gate deploys four times in five on the test part, a fraction.
        test_needed: test rows on which the gate deploys ``planned`` four times in five; 0 where ``min_gain`` is.
        min_score: ``task.min_score``; None where no bar was set.
        discordance: share of rows that are planned to change between right and wrong.
    """

    name: str
    tried: int
    calibrated: bool | None
    judge: str = ""
    min_gain: float
    planned: float
    detectable: float
    test_needed: int
    min_score: float | None
    discordance: float


@dataclass(frozen=True, kw_only=True)
class DevArm(Record):
    """A way to ask the untuned model, as dev measured it.

    Attributes:
        name: of the arm.
        detail: which demonstrations, for people.
        score: headline, 0 to 1; that of the best of several flatters (``Facts.prompt`` does not).
        n: dev rows.
        prompt_tokens, new_tokens: means a row.
        retrieves: whether passages or examples were searched for each row.
    """

    name: str
    detail: str
    score: float
    n: int
    prompt_tokens: float
    new_tokens: float
    retrieves: bool


@dataclass(frozen=True, kw_only=True)
class PriceFacts(Record):
    """What calls cost. None: the recipe does not say.

    Attributes:
        calls_per_month: calls.
        per_million: price of a million prompt tokens, in the reader's money.
        per_million_cached: price of a million that are cached; those that tuning saves would be.
        hosting: what a month of hosting the tuned model adds.
        per_hour: price of an hour of the machine that trains, in the same money.
        tokens_saved: prompt tokens of a call that a tuned model does without.
        counted: whether the model's tokenizer counted them (False: four characters a token).
    """

    calls_per_month: float | None
    per_million: float | None
    per_hour: float | None
    tokens_saved: float
    counted: bool
    per_million_cached: float | None = None
    hosting: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MachineFacts(Record):
    """The machine that trains.

    Attributes:
        name: product name of the GPU, or ``the CPU``.
        kind: ``gpu``, ``cpu``, or ``unknown`` where a GPU is there but was not asked.
        cores: CPU cores.
        memory: bytes of the GPU, or of the machine; None where unknown.
    """

    name: str
    kind: Device
    cores: int
    memory: int | None


@dataclass(frozen=True, kw_only=True)
class MemoryFacts(Record):
    """Bytes that training takes by what the base is kept in, roughly; see ``memory/room.py``.

    Attributes:
        base: the recipe's ``base``, or what ``auto`` comes to on this machine.
        by_base: base to bytes; empty where the model's configuration is not at hand.
        why_not: the reason for an empty one.
        parameters: weights of the model, 0 where unknown.
        adapter_per_rank: trained weights of a rank-1 adapter on all linear layers.
        hidden: width of the model, 0 where unknown.
        plans: what training turns to take so little, by base; none on a CPU, and where the GPU was not asked.
        spare: that ``base_budget: auto`` would give a base in NF4; 0 for none, and where it is not known.
    """

    base: str
    by_base: dict[str, int]
    why_not: str
    parameters: int
    adapter_per_rank: int
    hidden: int
    plans: dict[str, str] = field(default_factory=dict[str, str])
    spare: int = 0


@dataclass(frozen=True, kw_only=True)
class Rent(Record):
    """A training on a rented card, as it is predicted.

    Attributes:
        card: its name.
        hours: of the steps; loading, dev losses and evaluation are not counted.
        dollars: for these hours, USD.
        per_hour: of renting the card, USD.
        plan: what is turned there, by the recipe's names.
        source: of the price, with its day.
    """

    card: str
    hours: float
    dollars: float
    per_hour: float
    plan: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Facts(Record):
    """All of it.

    Attributes:
        rows: the examples.
        metric: what this many rows can tell.
        arms: prompts as dev measured them; empty before anything was asked.
        prompt, retrieval: what the best prompt that searches nothing, and that searches for each row, is worth on rows that did
            not choose it; None where none was asked, where there is no second dev row, or a judge scores.
        documents: whether the recipe brings documents.
        price: what calls cost.
        machine: that trains.
        memory: that training takes.
        use_rslora: ``lora.use_rslora``.
    """

    rows: RowFacts
    metric: MetricFacts
    arms: tuple[DevArm, ...]
    prompt: CrossFit | None
    retrieval: CrossFit | None
    documents: bool
    price: PriceFacts
    machine: MachineFacts
    memory: MemoryFacts
    use_rslora: bool = False

    def best_prompt(self) -> DevArm | None:
        """The measured prompt that searches nothing and is best: on the most rows, then by score, then by fewer tokens."""
        return best_of([arm for arm in self.arms if not arm.retrieves])

    def best_retrieval(self) -> DevArm | None:
        """The same among arms that search."""
        return best_of([arm for arm in self.arms if arm.retrieves])


def best_of(arms: list[DevArm]) -> DevArm | None:
    """The best of measured prompts. One that dropped out of the search early has answered fewer rows, and is behind."""
    return max(arms, key=lambda arm: (arm.n, arm.score, -arm.prompt_tokens), default=None)


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One answered question of the checklist.

    Attributes:
        check: the question, by its name.
        state: the answer; ``stop`` speaks against tuning, ``unknown`` lacks a number or lies between two bounds.
        evidence: the numbers.
        hint: what to do; empty for nothing.
    """

    check: str
    state: State
    evidence: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings(Record):
    """What to write into the recipe, each with its reason.

    Attributes:
        base, r, alpha, num_train_epochs: as in the recipe.
        tokens_per_step: the same; None where nobody rendered the rows, whose template may have most of their tokens.
        learning_rate: the same; None where the model's width is unknown.
        test_fraction: None where the recipe's share is right.
        fits: False where no base fits this machine.
        why: reason of each, by the key of a recipe (``lora.r``).
    """

    base: str
    r: int
    alpha: int
    num_train_epochs: int
    tokens_per_step: int | None
    learning_rate: float | None
    test_fraction: float | None
    fits: bool
    why: dict[str, str]

    @property
    def keys(self) -> dict[str, str | int | float]:
        """The settings as dotted keys of a recipe."""
        keys: dict[str, str | int | float] = {
            "base": self.base,
            "lora.r": self.r,
            "lora.alpha": self.alpha,
            "train.num_train_epochs": self.num_train_epochs,
        }
        known = {
            "train.tokens_per_step": self.tokens_per_step,
            "train.learning_rate": self.learning_rate,
            "data.test_fraction": self.test_fraction,
        }
        return keys | {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Advice(FileRecord):
    """How the checklist ends.

    Attributes:
        ending: what to do.
        exit_code: of the command: 0 tune here, 21 prompt is enough, 22 use retrieval, 23 collect more rows, 24 tune elsewhere.
        reason: one sentence with the numbers that decided.
        decided_by: names of the checks that decided.
        unknown: names of the checks that had no answer.
        provisional: whether no prompt was asked, so that two of the endings could not be reached.
        arm: the arm to use, where a prompt or retrieval is enough.
        prompt: file with that arm's messages, relative to the run directory.
        more_rows: how many to collect, where there are too few.
        settings: of the training, where to tune is the advice.
        checks: the checklist, in order.
        quick: whether no model was asked.
        hours: of one training run, roughly; None where unknown.
        facts: every number that the rules saw.
        rents: what one training run costs on cards that are rented, the cheapest first; empty where sizes are not known.
    """

    ending: Ending
    exit_code: int
    reason: str
    decided_by: tuple[str, ...]
    unknown: tuple[str, ...]
    provisional: bool
    arm: str | None = None
    prompt: str | None = None
    more_rows: int | None = None
    settings: Settings | None = None
    checks: tuple[Check, ...]
    quick: bool = False
    hours: float | None
    facts: Facts
    rents: tuple[Rent, ...] = ()

    @property
    def rent_line(self) -> str:
        """From the cheapest card to the dearest, with what is assumed; empty where none is known."""
        rents = list(self.rents)
        if not rents:
            return ""
        ends = rents if len(rents) < 3 else [rents[0], rents[-1]]
        each = [f"{_figure(r.dollars)} USD on {r.card} ({_figure(r.hours)} h at {r.per_hour:.2f})" for r in ends]
        of = f", the cheapest and the dearest of {len(rents)} cards that hold it" if len(rents) > 2 else ""
        assumed = f"predicted for the steps alone and not measured; prices: {rents[0].source}"
        return f"rent of one training: {' to '.join(each)}{of}; {assumed}"

    def _repr_html_(self) -> str:
        """The ending and the checklist that leads to it; the settings where there are some."""
        checks = table(
            ("check", "state", "evidence", "what to do"), [(c.check, c.state, c.evidence, c.hint) for c in self.checks]
        )
        html = paragraph(self.reason, f"advice: {self.ending}") + checks
        if self.settings is not None:
            why = self.settings.why
            html += table(("key", "value", "why"), [(key, str(value), why[key]) for key, value in self.settings.keys.items()])
        if self.rent_line:
            html += paragraph(self.rent_line)
        if self.provisional:
            html += paragraph("no prompt was asked, and the best one is what a tuned model has to beat", "provisional:")
        return html


def _figure(value: float) -> str:
    """Two decimals, or that it is less than they show."""
    return f"{value:,.2f}" if value >= 0.005 else "under 0.01"
