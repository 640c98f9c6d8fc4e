"""What ``evaluation/`` holds: answers and scores of every arm, the choice of prompts, and the verdict with its evidence.

    <arm>/outputs.jsonl   an ``Output`` a line
    <arm>/scores.json     ``Scores``               judge.json        ``Judgement``
    selection.json        ``Selection``            forgetting.json   ``Forgetting``
    retrieval.json        ``RetrievalRecall``      seeds.json        ``Seeds``
    curve.json            ``Curve``                verdict.json      ``Verdict``: all of it but the answers and the curve

Scores and shares are fractions of 1. A score of None is an unscored row or arm (a judge that gave no verdict); it is in no
mean. ``figures`` holds a metric's own figures by name, as many as the metric has.
"""

from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import FileRecord, Json, Record
from tunesmith.rundir.records.parity import FormParity

Decision = Literal[
    "deploy", "prompting is enough", "not better", "too little data to tell", "regression", "not the model that was trained"
]
NonInferiority = Literal["no regression", "regression", "too little data to tell"]
CurveVerdict = Literal["more data pays", "more data does not pay", "cannot tell"]
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
    """

    id: str
    prompt: list[Json]
    output: str
    reference: str
    score: float | None
    figures: Figures
    prompt_tokens: int
    new_tokens: int
    seconds: float
    finished: bool
    cost: float | None = None


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


@dataclass(frozen=True, kw_only=True)
class Scores(FileRecord):
    """An arm's figures.

    Attributes:
        key: fingerprint of everything that the answers follow from.
        summary: the figures.
    """

    key: str
    summary: Summary


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
    """

    arm: str
    instruction: str | None
    selection: str = "none"
    k: int = 0
    draw: int = 0
    demonstrations: tuple[str, ...] = ()
    documents: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        """As it is printed: ``instruction``, ``k=3 draw=1``, ``k=3 bm25``."""
        shown = f"k={self.k} " + (f"draw={self.draw}" if self.selection == "random" else self.selection)
        parts = ([self.variant] if self.variant else []) + ([shown] if self.k else [])
        return ", ".join(parts) or self.arm


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
        best_prompt: the arm to beat.
        best_prompt_name: its way to ask, for people.
        arms: the chosen candidate of every prompt arm.
        candidates: what each candidate got.
        search: what ``optimized_prompt`` cost; None without that arm.
        dev_rows: rows that every candidate answered.
    """

    best_prompt: str
    best_prompt_name: str
    arms: dict[str, Candidate]
    candidates: tuple[Trial, ...]
    search: SearchCost | None
    dev_rows: int


@dataclass(frozen=True, kw_only=True)
class RetrievalRecall(FileRecord):
    """Whether the right passages are found, before any answer is scored.

    Attributes:
        searched: ``documents`` or ``train rows``.
        passages: how many there are.
        k: first passages that count.
        n: rows that asked.
        answer_recall: share of rows whose reference stands in one of the first k passages.
        relevant: how a right passage is known, in words.
        named: rows that name their document; None, as the two below, where none does.
        recall: share of those rows whose document is found.
        ndcg: the same, weighed by rank.
    """

    searched: str
    passages: int
    k: int
    n: int
    answer_recall: float
    relevant: str
    named: int | None = None
    recall: float | None = None
    ndcg: float | None = None


@dataclass(frozen=True, kw_only=True)
class JudgeReport(Record):
    """What has to be known of a judge before its verdicts are believed.

    Attributes:
        n: pairs.
        wins, ties, losses: of the arm.
        unscored: verdicts that cannot be read.
        by_checks: pairs that needed no judge.
        position_consistency: share of readable double verdicts that agree.
        first_preferred: share of A among readable verdicts for one side.
        length_correlation: Spearman's rho of "longer by" and score, over pairs that the judge decided. These three are None
            where there is nothing to compute from.
    """

    n: int
    wins: int
    ties: int
    losses: int
    unscored: int
    by_checks: int
    position_consistency: float | None
    first_preferred: float | None
    length_correlation: float | None


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """A judge against human labels.

    Attributes:
        calibrated: whether it agrees with people well enough to decide.
        reason: why, or why not.
        n: labels that both gave.
        unscored: labels that the judge did not give.
        kappa: agreement beyond chance; None, as the rest, without labels.
        kappa_low: its lower bound.
        agreement: share of equal labels.
        report: of the judge on the labelled pairs.
    """

    calibrated: bool
    reason: str
    n: int
    unscored: int = 0
    kappa: float | None = None
    kappa_low: float | None = None
    agreement: float | None = None
    report: JudgeReport | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement(FileRecord):
    """The judge of a run.

    Attributes:
        calibration: its agreement with people.
        arms: what it decided of each arm against the best prompt.
    """

    calibration: Calibration
    arms: dict[str, JudgeReport]


@dataclass(frozen=True, kw_only=True)
class Change(Record):
    """An item that changed.

    Attributes:
        id: of the item.
        difference: tuned less base, worse is negative.
    """

    id: str
    difference: float


@dataclass(frozen=True, kw_only=True)
class ProbePart(Record):
    """One kind of item of a probe.

    Attributes:
        name: of the kind.
        n: items.
        base, tuned: means of both sides.
        difference: base less tuned, as a share of the base's.
    """

    name: str
    n: int
    base: float
    tuned: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class Probe(Record):
    """A probe of forgetting that has a margin, and so a verdict.

    Attributes:
        name, label: for programs, and for people.
        n: items.
        base, tuned: means of both sides in the probe's own unit.
        difference: mean of tuned less base in the unit of the margin, worse is negative.
        bound: one-sided 95 % lower bound of it.
        margin: largest loss that does not matter.
        unit: of the margin.
        verdict: of non-inferiority.
        parts: by kind of item.
        largest: the items that lost most, worst first.
    """

    name: str
    label: str
    n: int
    base: float
    tuned: float
    difference: float
    bound: float
    margin: float
    unit: str
    verdict: NonInferiority
    parts: tuple[ProbePart, ...] = ()
    largest: tuple[Change, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProbeFigure(Record):
    """A figure of forgetting without a margin: looked at, not decided on.

    Attributes:
        name, label: for programs, and for people.
        n: items.
        value: the figure or the change.
        low, high: its 95 % interval.
        base, tuned: means of both sides; None where the figure is of both together.
        unit: of the value.
        alarm: from where on it is an alarm; None for never.
        alarmed: whether it is one.
        largest: the items that changed most.
    """

    name: str
    label: str
    n: int
    value: float
    low: float
    high: float
    unit: str
    base: float | None = None
    tuned: float | None = None
    alarm: float | None = None
    alarmed: bool = False
    largest: tuple[Change, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Forgetting(FileRecord):
    """What the tuned model lost beside its task.

    Attributes:
        verdict: a regression where any probe has one; none where all are free of it.
        reason: one sentence.
        margin: largest loss that does not matter.
        probes: what decides.
        figures: what is shown beside it.
    """

    verdict: NonInferiority
    reason: str
    margin: float
    probes: tuple[Probe, ...]
    figures: tuple[ProbeFigure, ...]


@dataclass(frozen=True, kw_only=True)
class SeedRun(Record):
    """One adapter of ``evaluate.seeds``.

    Attributes:
        seed: of its training.
        score: on the test part.
        best_dev_loss: of the checkpoint that stays.
    """

    seed: int
    score: float
    best_dev_loss: float


@dataclass(frozen=True, kw_only=True)
class Seeds(FileRecord):
    """The spread over training seeds.

    Attributes:
        arm: what was scored.
        n: test rows.
        runs: of each seed; the run's own first.
        mean, min, max: of the scores.
        sd: their standard deviation (n - 1).
        inputs: fingerprint of the answers of the run's own seed.
    """

    arm: str
    n: int
    runs: tuple[SeedRun, ...]
    mean: float
    min: float
    max: float
    sd: float
    inputs: str = ""


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """A figure with its 95 % interval.

    Attributes:
        rows: train rows that it belongs to.
        value, low, high: score, or gain of a score, in 0..1.
    """

    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Curve(FileRecord):
    """A fitted learning curve, ``error(n) = a + b (n / N)^-c``.

    Attributes:
        a, b, c: the law's constants at the point estimate.
        points: what was measured on dev, an estimate a share.
        line: the fitted score from the smallest share to four times the data, for a picture.
        gains: predicted gain over the score now, at twice and at four times the rows.
        dev_rows: rows that every share was scored on.
        unscored: rows left out because a share has no score for them.
        seed_sd: standard deviation over training seeds, where it was measured.
        verdict: what follows for ``min_gain``.
        reason: the same as a sentence with its numbers.
        inputs: fingerprint of the run's own adapter.
    """

    a: float
    b: float
    c: float
    points: tuple[Estimate, ...]
    line: tuple[Estimate, ...]
    gains: tuple[Estimate, ...]
    dev_rows: int
    unscored: int = 0
    seed_sd: float | None = None
    verdict: CurveVerdict
    reason: str
    inputs: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """An arm against another (the best prompt, most often), on the same rows.

    Attributes:
        gain: difference of the headline figures.
        low, high: 95 % interval of the gain.
        p: two-sided p of "no difference".
        won, lost: rows that score higher only here, and only there.
        detectable: smallest gain that these rows would find with 80 % power.
        n, units: rows compared; what was drawn again (groups, or the rows themselves).
        unscored: rows left out because one of the two has no score.
        yes_no: whether rows are right or wrong and on their own.
        p_holm: ``p`` adjusted for the number of arms compared (Holm); None outside of a verdict.
    """

    gain: float
    low: float
    high: float
    p: float
    won: int
    lost: int
    detectable: float
    n: int
    units: int
    unscored: int = 0
    yes_no: bool = True
    p_holm: float | None = None


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
        against: its comparison with the best prompt; None for that prompt itself.
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
        won, lost: better and worse than with the best prompt.
        only_tuning: better than with every prompt.
    """

    won: tuple[str, ...]
    lost: tuple[str, ...]
    only_tuning: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict(FileRecord):
    """Whether tuning was worth it, and all that it follows from.

    Attributes:
        decision: one of six.
        exit_code: of the command.
        reason: one sentence with the numbers that decided.
        advice: what would make it surer, a sentence each.
        candidate: the arm that would be deployed.
        best_prompt: the arm to beat, chosen on dev.
        min_gain: smallest gain that is worth it.
        n: rows compared.
        unscored: rows left out.
        clusters: groups compared; None when each row is its own.
        metric: its name.
        corpus_metric: whether its headline is no mean over rows.
        comparison: candidate against the best prompt.
        n_needed: rows that find ``min_gain`` with 80 % power; None where it is 0.
        rows_to_settle: rows that would settle it; None unless these are too few, or where no number would.
        borderline: whether one standard error more or less of gain decides otherwise.
        only_worse: whether training lowered no dev loss, so that the adapter is the untouched one.
        deployed_loss: the deployed form against the tuned model; None without both.
        differing: rows where the candidate and the prompts differ.
        forgetting, parity, seeds, judge, retrieval: what was measured; None for what was not.
        seed_gains: gain of each seed over the best prompt.
        arms: figures of every arm.
        selection: how the prompts were chosen.
    """

    decision: Decision
    exit_code: int
    reason: str
    advice: tuple[str, ...]
    candidate: str
    best_prompt: str
    min_gain: float
    n: int
    unscored: int
    clusters: int | None
    metric: str
    corpus_metric: bool
    comparison: Comparison
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
    arms: tuple[Arm, ...]
    selection: Selection

    @property
    def deploy(self) -> bool:
        """Whether to deploy the tuned model."""
        return self.decision == "deploy"

    def arm(self, name: str) -> Arm:
        """The figures of an arm."""
        return next(arm for arm in self.arms if arm.name == name)
