"""All that a verdict follows from: the comparisons, and what else was measured of a run (``gate.py`` decides)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tunesmith.evaluate import rule
from tunesmith.rundir.records.choice import Choice
from tunesmith.rundir.records.evaluation import Comparison, Replacement, Terms, TrainingRows, TunedForm
from tunesmith.rundir.records.evidence import Forgetting, Judgement, RetrievalRecall, Seeds
from tunesmith.rundir.records.parity import FormParity
from tunesmith.rundir.records.readings import Tries
from tunesmith.rundir.records.saving import Saving


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What else was measured of a run; None for what was not.

    Attributes:
        forgetting: a regression blocks; with ``forgetting_required`` so does a suite that cannot tell.
        forgetting_of: of each of several candidates, by the name of its arm.
        seeds: the spread over training seeds, on the same rows.
        parity: of the deployed form.
        judge: what was found of the judge.
        retrieval: whether the right passages were found.
        only_worse: whether training lowered no dev loss.
        saving: what a call of the deployed form saves.
        training_rows: what is known of the rows that the tuned model was trained on.
        form: what the tuned model is.
        tries: what was scored on these rows before; None where nobody counts, and this is the first.
        choice: which of several candidates is judged as it is deployed; None where each is judged in the form in which it came.
    """

    forgetting: Forgetting | None = None
    forgetting_required: bool = False
    seeds: Seeds | None = None
    parity: FormParity | None = None
    judge: Judgement | None = None
    retrieval: RetrievalRecall | None = None
    only_worse: bool = False
    saving: Saving | None = None
    training_rows: TrainingRows = "own"
    form: TunedForm = "trained"
    tries: Tries | None = None
    forgetting_of: Mapping[str, Forgetting] = field(default_factory=dict)
    choice: Choice | None = None

    def of(self, candidate: str) -> "Evidence":
        """What was measured of one candidate, where there are several."""
        return replace(self, forgetting=self.forgetting_of.get(candidate, self.forgetting))


NOTHING = Evidence()


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that a verdict follows from.

    Attributes:
        terms: what the recipe asks.
        comparisons: the candidate against every rival, the strongest first.
        score: the candidate's.
        best_prompt_score: the strongest rival's, which is the best score of all rivals.
        seed_gains: of the seeds over the strongest rival; empty where one seed was trained.
        evidence: what else was measured.
        replaced: the candidate against what it is to take the place of.
    """

    terms: Terms
    comparisons: tuple[Comparison, ...]
    score: float = 1.0
    best_prompt_score: float = 0.0
    seed_gains: tuple[float, ...] = ()
    evidence: Evidence = NOTHING
    replaced: tuple[Replacement, ...] = ()

    @property
    def headline(self) -> Comparison:
        """The comparison with the strongest rival."""
        return self.comparisons[0]

    @property
    def is_better(self) -> bool:
        """Whether the candidate is better than every rival for certain."""
        return all(c.low > 0.0 for c in self.comparisons)

    @property
    def is_shown(self) -> bool:
        """Whether the gain over every rival is as large and as certain as the recipe asks."""
        return all(rule.is_shown(c, self.terms) for c in self.comparisons)

    @property
    def is_as_good(self) -> bool:
        """Whether the candidate is worse than no rival by ``min_gain`` for certain, and by itself good enough."""
        return self.score >= (self.terms.min_score or 0.0) and all(rule.is_as_good(c, self.terms) for c in self.comparisons)

    @property
    def is_cheaper(self) -> bool:
        """Whether it is as good, in half of the seeds too, and saves enough to pay for its training in time."""
        as_good = sum(gain > -self.terms.min_gain for gain in self.seed_gains)
        pays = self.evidence.saving is not None and self.evidence.saving.pays_back
        return self.is_as_good and 2 * as_good >= len(self.seed_gains) and pays

    @property
    def may_replace(self) -> bool:
        """Whether there is a model to replace, the candidate may take the place of each, is by itself good enough, and is not
        for certain worse than a prompt."""
        is_enough = self.score >= (self.terms.min_score or 0.0) and all(c.high >= 0.0 for c in self.comparisons)
        return bool(self.replaced) and is_enough and all(each.state == "may replace it" for each in self.replaced)

    @property
    def has_merit(self) -> bool:
        """Whether there is something that lost skills can take back."""
        return self.is_shown or self.is_cheaper or self.may_replace

    @property
    def forgot(self) -> str:
        """The verdict of the forgetting suite, ``not measured`` without one."""
        return "not measured" if self.evidence.forgetting is None else self.evidence.forgetting.verdict

    @property
    def seeds_that_gain(self) -> int:
        """How many of the seeds gain ``min_gain`` or more."""
        return sum(gain >= self.terms.min_gain for gain in self.seed_gains)
