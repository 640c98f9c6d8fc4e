"""What ``evaluation/`` holds beside the answers of every arm (``answers.py``): the choice of prompts, and the verdict with its
evidence.

    selection.json        ``Selection``
    verdict.json          ``Verdict``: all of it but the answers and the curve, and the evidence of ``evidence.py``

Scores and shares are fractions of 1.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.formatting import percent, points, points_between
from tunesmith.notebook import Interval, forest, paragraph, table
from tunesmith.rundir.records.answers import Summary
from tunesmith.rundir.records.base import FileRecord, Record
from tunesmith.rundir.records.evidence import CrossFit, Forgetting, Judgement, RetrievalRecall, Seeds
from tunesmith.rundir.records.parity import FormParity
from tunesmith.rundir.records.readings import Tries
from tunesmith.rundir.records.saving import Saving

Decision = Literal[
    "deploy",
    "prompting is enough",
    "not better",
    "too little data to tell",
    "regression",
    "not the model that was trained",
    "not good enough",
    "not calibrated",
    "as good and cheaper",
    "may replace it",
]
Worth = Literal["certain", "likely", "not shown", "ruled out"]
TrainingRows = Literal["own", "kept out", "unknown"]
TunedForm = Literal["trained", "adapter", "merged", "gguf", "endpoint", "several"]


@dataclass(frozen=True, kw_only=True)
class Candidate(Record):
    """One way to prompt.

    Attributes:
        arm: the arm it can stand for.
        instruction: the system turn.
        selection: ``none``, ``random`` (the rows named in ``demonstrations``), or a way to find the nearest train rows.
        k: demonstrations in a prompt.
        draw: number of the random draw.
        demonstrations: ids of the rows drawn.
        documents: how many documents stand before the question.
        variant: what was done to the instruction, in words.
        held_to: what the engine constrains the answers to; empty where they are written freely.
    """

    arm: str
    instruction: str | None
    selection: str = "none"
    k: int = 0
    draw: int = 0
    demonstrations: tuple[str, ...] = ()
    documents: int = 0
    variant: str = ""
    held_to: Literal["", "schema", "labels"] = ""

    @property
    def name(self) -> str:
        """As it is printed: ``instruction``, ``k=3 draw=1``, ``k=3 bm25, answers held to the schema``."""
        shown = f"k={self.k} " + (f"draw={self.draw}" if self.selection == "random" else self.selection)
        parts = ([self.variant] if self.variant else []) + ([shown] if self.k else [])
        held = [f"answers held to the {self.held_to}"] if self.held_to else []
        return ", ".join([*(parts or [self.arm]), *held])


@dataclass(frozen=True, kw_only=True)
class Trial(Summary):
    """What a candidate got on the dev rows.

    Attributes:
        arm: the arm it was tried for.
        candidate: the way to prompt.
    """

    arm: str
    candidate: Candidate


@dataclass(frozen=True, kw_only=True)
class Written(Record):
    """What a model that writes instructions came to.

    Attributes:
        instruction: the best on dev; the first one where none was better.
        answers: of the base model, spent.
        rewritings: questions to the writer.
    """

    instruction: str
    answers: int
    rewritings: int


@dataclass(frozen=True, kw_only=True)
class SearchCost(Record):
    """What the search for ``optimized_prompt`` cost.

    Attributes:
        calls: answers of the base model.
        tried: candidates that were asked at all.
        written: what a writer of instructions came to; None without one.
    """

    calls: int
    tried: int
    written: Written | None = None


@dataclass(frozen=True, kw_only=True)
class Selection(FileRecord):
    """The prompts chosen on dev.

    Attributes:
        finalists: prompts that the tuned model has to beat, the best on dev first: an arm's name, or ``few_shot:2`` for the
            second of an arm.
        rivals: arms that can be the one to beat.
        arms: the chosen candidate of every prompt arm, and of every finalist that is not the best of its arm.
        candidates: what each candidate got on the rows that it answered.
        search: what ``optimized_prompt`` cost; None without that arm.
        dev_rows: rows that every finalist answered.
        prompt, retrieval: what the best prompt that searches nothing, and that searches for passages, is worth on rows that did
            not choose it; None where there is none, or a judge scores.
    """

    finalists: tuple[str, ...]
    rivals: tuple[str, ...]
    arms: dict[str, Candidate]
    candidates: tuple[Trial, ...]
    search: SearchCost | None
    dev_rows: int
    prompt: CrossFit | None = None
    retrieval: CrossFit | None = None

    @property
    def base_prompt(self) -> str:
        """The best prompt on dev that the base model itself answers."""
        name = next((name for name in self.finalists if name in self.arms), None)  # not an endpoint
        if name is not None:
            return name
        figures = {trial.candidate: (trial.n, trial.score or 0.0) for trial in self.candidates}
        return max(self.arms, key=lambda arm: figures[self.arms[arm]])

    @property
    def leader(self) -> str:
        """The best prompt on dev."""
        return self.finalists[0]

    def more_finalists(self, arms: Collection[str]) -> tuple[str, ...]:
        """Finalists that are none of these arms."""
        return tuple(name for name in self.finalists if name not in arms)

    def scored(self, arms: Collection[str]) -> tuple[str, ...]:
        """Everything that answers the test part where these are the arms: prompts, more finalists, endpoints, tuned arms."""
        prompts = [arm for arm in arms if arm in self.arms]
        return (*prompts, *self.more_finalists(arms), *(arm for arm in arms if arm not in prompts))

    def way_of(self, name: str) -> str:
        """How an arm or finalist asks, for people: ``few_shot (k=3 bm25)``, ``instruction (answers held to the schema)``."""
        if name not in self.arms:
            return name
        way = self.arms[name].name.removeprefix(self.arms[name].arm).removeprefix(", ")
        return f"{name} ({way})" if way else name


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """An arm against another (the strongest prompt, most often), on the same rows.

    Attributes:
        gain: difference of the headline figures.
        low, high: interval of the gain, 95 % where ``alpha`` is 0.05.
        p: two-sided p of "no difference", by the method of the interval: below 0.05 where the interval excludes 0.
        won, lost: rows that score higher only here, and only there.
        n, units: rows compared; what was drawn again (groups, or the rows themselves).
        unscored: rows left out because one of the two has no score.
        yes_no: whether rows are right or wrong and on their own.
        alpha: what the interval leaves out: 0.05, or less where other adapters were scored on these rows before.
    """

    gain: float
    low: float
    high: float
    p: float
    won: int
    lost: int
    n: int
    units: int
    unscored: int = 0
    yes_no: bool = True
    alpha: float = 0.05

    @property
    def level(self) -> str:
        """What the interval holds, in per cent: ``95``."""
        return f"{100.0 * (1.0 - self.alpha):.4g}"


@dataclass(frozen=True, kw_only=True)
class Replacement(Record):
    """The candidate against a model that it is to take the place of.

    Attributes:
        name: the arm of that model.
        score: its score.
        comparison: the candidate against it.
        state: whether for certain less than ``task.min_gain`` is lost, or for certain at least that much, or neither.
    """

    name: str
    score: float
    comparison: Comparison
    state: Literal["may replace it", "loses too much", "not known"]


@dataclass(frozen=True, kw_only=True)
class Totals(Record):
    """What all answers of an arm took together.

    Attributes:
        prompt_tokens, new_tokens: as the engine counted them.
        seconds: of answering.
        cost: in the currency of the recipe's prices; None without one.
    """

    prompt_tokens: int
    new_tokens: int
    seconds: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class Arm(Summary):
    """An arm on the test part.

    Attributes:
        low, high: 95 % interval of the score.
        totals: what its answers took.
        against: its comparison with the strongest rival; None for that prompt itself.
    """

    score: float
    low: float
    high: float
    totals: Totals
    against: Comparison | None


@dataclass(frozen=True, kw_only=True)
class Differing(Record):
    """Ids of the rows where the candidate and the prompts differ, the largest difference first; no unscored row is there.

    Attributes:
        won, lost: better and worse than with the strongest prompt.
        only_tuning: better than with every prompt.
    """

    won: tuple[str, ...]
    lost: tuple[str, ...]
    only_tuning: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Terms(Record):
    """What the recipe asks of a model before it is deployed.

    Attributes:
        min_gain: smallest gain that is worth it.
        certainty: what has to be certain: that it is better, or that it is better by ``min_gain``.
        min_score: smallest score that is good enough; None where no bar was set.
        alpha: two-sided level of the certainty: 0.05 for the first adapter on a test part, less for later ones.
    """

    min_gain: float
    certainty: Literal["better", "worth"] = "better"
    min_score: float | None = None
    alpha: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Rival(Record):
    """A prompt that the candidate has to beat.

    Attributes:
        name: of the arm or finalist.
        way: how it asks, for people.
        finalist: whether dev chose it; else it is an arm that is ahead of the candidate on the test part.
        score: on the test part.
        comparison: the candidate against it.
    """

    name: str
    way: str
    finalist: bool
    score: float
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class CandidateResult(Record):
    """One of several tuned models that were brought, as it stands by itself.

    Attributes:
        name: of its arm.
        decision: what it comes to.
        score: on the test part.
        best_prompt: the strongest prompt against it.
        comparison: with that prompt, at the level that all candidates share.
        forgetting: what it lost beside the task; None behind an endpoint.
    """

    name: str
    decision: Decision
    score: float
    best_prompt: str
    comparison: Comparison
    forgetting: Forgetting | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict(FileRecord):
    """Whether tuning was worth it, and all that it follows from.

    Attributes:
        decision: one of ten.
        exit_code: of the command.
        reason: one sentence with the numbers that decided.
        advice: what would make it surer, a sentence each.
        candidate: the arm that would be deployed.
        score: the candidate's.
        best_prompt: the strongest rival on the test part.
        rivals: every prompt that has to be beaten, the strongest on the test part first.
        ahead: other arms ahead of the candidate, which the recipe does not hold against it (``rival: false``).
        terms: what the recipe asks.
        better: whether it is better than every rival for certain.
        worth: whether the gain over the strongest rival is ``min_gain`` or more.
        n: rows compared.
        unscored: rows left out.
        clusters: groups compared; None when each row is its own.
        metric: its name.
        corpus_metric: whether its headline is no mean over rows.
        comparison: candidate against the best prompt.
        detectable: the true gain over one rival that so many rows deploy four times in five; 1 where none is.
        planned: twice ``min_gain``, the gain that ``n_needed`` is for.
        n_needed: rows on which a true gain of ``planned`` is deployed four times in five; None where it is 0.
        rows_to_settle: rows that would settle it four times in five, if the gain is what it was here; None unless these are too
            few, or where no number would.
        borderline: whether one standard error more or less of gain decides otherwise.
        only_worse: whether training lowered no dev loss, so that the adapter is the untouched one.
        deployed_loss: the deployed form against the tuned model; None without both.
        differing: rows where the candidate and the prompts differ.
        forgetting, parity, seeds, judge, retrieval: what was measured; None for what was not.
        as_good: whether it is, for certain, worse than no rival by ``min_gain``.
        saving: what a call saves; None without the arm ``prompt_deployed``, or a price or number of calls.
        seed_gains: gain of each seed over the strongest rival.
        tries: what was scored on these rows up to this verdict.
        arms: figures of every arm.
        selection: how the prompts were chosen.
        replaced: the candidate against every model that it is to take the place of.
        files: sha256 of every file of the run that the verdict speaks of, by path below the run directory.
        sources: sha256 of the rows and of the base's files, wherever they lay when they were read.
        candidates: every tuned model that was brought, where there were several.
        chosen: of several the arm of the one whose deployed form the verdict is of; None where they were judged as they came.
        training_rows: the rows of the training are the run's own; or the tuned model was brought, and those it was trained on
            were kept out of the test part, or nobody knows them.
        form: what the tuned model is: trained in the run, or in which form it was brought.
    """

    decision: Decision
    exit_code: int
    reason: str
    advice: tuple[str, ...]
    candidate: str
    score: float
    best_prompt: str
    rivals: tuple[Rival, ...]
    ahead: tuple[str, ...]
    terms: Terms
    better: bool
    worth: Worth
    n: int
    unscored: int
    clusters: int | None
    metric: str
    corpus_metric: bool
    comparison: Comparison
    detectable: float
    planned: float
    n_needed: int | None
    rows_to_settle: int | None
    borderline: bool
    only_worse: bool
    deployed_loss: Comparison | None
    differing: Differing
    forgetting: Forgetting | None
    parity: FormParity | None
    seeds: Seeds | None
    seed_gains: tuple[float, ...]
    judge: Judgement | None
    retrieval: RetrievalRecall | None
    as_good: bool
    saving: Saving | None
    tries: Tries
    arms: tuple[Arm, ...]
    selection: Selection
    replaced: tuple[Replacement, ...] = ()
    files: dict[str, str] = field(default_factory=dict[str, str])
    sources: dict[str, str] = field(default_factory=dict[str, str])
    candidates: tuple[CandidateResult, ...] = ()
    chosen: str | None = None
    training_rows: TrainingRows = "own"
    form: TunedForm = "trained"

    @property
    def deploy(self) -> bool:
        """Whether to deploy the tuned model because it is better; ``as good and cheaper`` is yours to weigh."""
        return self.decision == "deploy"

    @property
    def in_process(self) -> str:
        """The arm of the tuned model before it is exported, if it was scored."""
        return self.chosen or "tuned"

    def arm(self, name: str) -> Arm:
        """The figures of an arm."""
        return next(arm for arm in self.arms if arm.name == name)

    def _repr_html_(self) -> str:
        """The decision, the gain of every arm with its interval as a picture, and their scores as a table."""
        lines: list[Interval] = []
        rows: list[tuple[str, ...]] = []
        for arm in self.arms:
            score = (arm.name, percent(arm.score), f"{percent(arm.low)}-{percent(arm.high)}")
            versus = arm.against
            if versus is None:
                rows.append((*score, "", "", "", ""))
                continue
            gain, between = points(versus.gain), points_between(versus.low, versus.high)
            p = f"{versus.p:.3f}" if versus.p >= 0.001 else "<.001"
            rows.append((*score, gain, between, p, f"{versus.won}/{versus.lost}"))
            lines.append(
                Interval(
                    name=arm.name,
                    value=100.0 * versus.gain,
                    low=100.0 * versus.low,
                    high=100.0 * versus.high,
                    figures=f"{gain} ({between})",
                    is_chosen=arm.name == self.candidate,
                )
            )
        unit = f"points of {self.metric} over {self.best_prompt}, {self.comparison.level} % interval; dashed: worth deploying"
        head = ("arm", "score", "95 %", "gain", f"{self.comparison.level} % of gain", "p", "won/lost")
        caption = f"{self.metric} on {self.n} sealed test rows; gains against {self.best_prompt}, the strongest prompt"
        picture = forest(lines, 100.0 * self.terms.min_gain, unit) if lines else ""
        advice, counts = "".join(paragraph(sentence) for sentence in self.advice), paragraph(self.tries.line)
        return paragraph(self.reason, f"verdict: {self.decision}") + picture + table(head, rows, caption) + counts + advice
