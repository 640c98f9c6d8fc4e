"""What ``evaluation/`` holds beside answers: evidence that the verdict weighs or the page shows.

retrieval.json   ``RetrievalRecall``      seeds.json   ``Seeds``
judge.json       ``Judgement``            curve.json   ``Curve``
forgetting.json  ``Forgetting``
"""

from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import FileRecord, Record

NonInferiority = Literal["no regression", "regression", "too little data to tell"]
CurveVerdict = Literal["more data pays", "more data does not pay", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class CrossFit(Record):
    """What the best of some prompts is worth: chosen on one half of dev, scored on the other, and the other way round.

    Attributes:
        score: headline over the rows, each answered by the prompt that was best without it; 0 to 1.
        low, high: 95 % interval, by the method that fits the metric.
        bound: what the score is at least, one-sided 96 %; never above the exact bound where few rows are wrong.
        n: dev rows.
    """

    score: float
    low: float
    high: float
    bound: float
    n: int


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
class Forgotten(Record):
    """What the tuned model lost as it is in this process, beside the form that ships.

    Attributes:
        verdict, reason, probes, figures: as of ``Forgetting``.
    """

    verdict: NonInferiority
    reason: str
    probes: tuple[Probe, ...]
    figures: tuple[ProbeFigure, ...]


@dataclass(frozen=True, kw_only=True)
class Forgetting(FileRecord):
    """What the tuned model lost beside its task.

    Attributes:
        verdict: a regression where any probe has one; none where all are free of it.
        reason: one sentence.
        margin: largest loss that does not matter.
        probes: what decides.
        figures: what is shown beside it.
        form: the deployed form that all this was measured on; empty where it was the model in this process.
        bits_added: what that form adds to the bits per byte of the model in process, as a share of them.
        in_process: the same of the model in process; None where nothing else was measured.
    """

    verdict: NonInferiority
    reason: str
    margin: float
    probes: tuple[Probe, ...]
    figures: tuple[ProbeFigure, ...]
    form: str = ""
    bits_added: float | None = None
    in_process: Forgotten | None = None


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
    """

    arm: str
    n: int
    runs: tuple[SeedRun, ...]
    mean: float
    min: float
    max: float
    sd: float


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
