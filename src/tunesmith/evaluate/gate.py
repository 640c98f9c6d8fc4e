"""The verdict: is the tuned model, in the form it will be deployed in, worth it over the best prompt?

**The best prompt is every finalist.** Which prompt is the best is not known: dev chose the finalists (``select.py``), and each
of them answers the sealed test part. The tuned model must be shown to be better than *each*. A claim that needs every one of
several tests to reject at 5 % needs no correction (intersection-union; Berger 1982): the chance of a false one is that of the
hardest test. An arm that dev did not choose and that is ahead of the candidate on the test part is held against it like a
finalist. The headline is the comparison with the strongest on the test part. Refused: one prompt chosen on dev, which lets a
tuned model pass 20 to 34 % of the time that is no better than the best prompt tried, and the more often the more test rows
there are.

**What is asked of the gain** is ``task.min_gain`` and ``task.certainty`` (``rule.py``); the words of a verdict say apart what
is certain (*better*) and what is likely (*by enough*). Whether the gain is ``min_gain`` is certain, likely, not shown or ruled
out.

**The table** (``RULES``) is asked from the top, and the first that holds decides. Parity first: the answers of a file that is
not the model that was trained say nothing of the training. Then the scores themselves: those of a judge that does not agree
with people (``judge.py``: 100 labels, kappa 0.6) decide nothing, nor do rows of which more than one in twenty has no score,
since the rest need not be like them. Then the bar: where neither the candidate nor a prompt reaches ``task.min_score``, none
of them is to be used. What forgetting, seeds or a suite that cannot tell take back is only ever a ``deploy``, or that it is
cheaper. The interval speaks for this adapter on other rows; it does not speak for the adapter that another seed would have
given, so where seeds were trained at least half of them must gain ``min_gain`` too (their scores are before quantisation).

**As good and cheaper.** Tuning also pays by removing a long prompt. Where no gain is shown, a candidate that is for certain
less than ``min_gain`` behind every rival (non-inferior; the low end of the interval lies above ``-min_gain``) and whose calls
save enough to pay for the training in time (``advise/price.py``) gets an ending of its own, not ``deploy``: nothing of the
answers became better, and the prices are those of the recipe.

**May replace it.** Somebody leaves a model that was tuned elsewhere and is switched off, and asks whether this one does as
well. That model need not be beaten. Where it is certain that less than ``min_gain`` is lost against it, the candidate may take
its place (``replacement.py``); better than the best prompt as well, it is a ``deploy`` that says so, and not shown to be better
than a prompt, ``may replace it``, for then the prompt may do too. Where as much is lost for certain nothing is deployed,
whatever it gains over prompts; where neither is certain, too little is known.

**Borderline** is a verdict that would be another one if the gain had come out one standard error higher or lower; it asks for
``evaluate.seeds: 3``.

**Other tries.** An adapter that comes after others on the same test rows has to be more certain (``tries.py``): every interval
of the verdict is widened for its place in the ledger, whichever run the others are of.

**Several candidates** that were brought share the certainty (``candidates.py``). The verdict is of the one with the highest
score among those that pass, of the highest of all where none does. Where the recipe has the arm ``deployed``, that one is only
the choice (``choose``): it is exported, and the verdict is of its file, at the share of one candidate.

A negative verdict rests on the headline alone. It is not corrected for having picked the strongest of several on the test
part, which errs on the side of the prompt.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tunesmith.evaluate import replacement, rule
from tunesmith.evaluate.arms import arm_of
from tunesmith.evaluate.candidates import candidates_of, holm, is_tuned, share_of_one
from tunesmith.evaluate.case import NOTHING, Case, Evidence
from tunesmith.evaluate.compare import compare, scores, standard_error, unscored_share
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.replacement import first_that
from tunesmith.evaluate.rivals import figure_of, rivals_of
from tunesmith.evaluate.tries import alpha_of, widened
from tunesmith.evaluate.verdict_words import advice, gain_line, remarks
from tunesmith.formatting import percent
from tunesmith.recipe import Task
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import (
    CandidateResult,
    Comparison,
    Decision,
    Differing,
    Replacement,
    Rival,
    Selection,
    Terms,
    Verdict,
)
from tunesmith.rundir.records.readings import Tries

NOT_TRAINED: Decision = "not the model that was trained"
EXIT_CODES: dict[Decision, int] = {
    "deploy": 0,
    "prompting is enough": 10,
    "not better": 11,
    "too little data to tell": 12,
    "regression": 13,
    NOT_TRAINED: 14,
    "not good enough": 15,
    "as good and cheaper": 16,
    "not calibrated": 12,  # too little is known of the judge
    "may replace it": 17,
}
LOSES, UNKNOWN = "loses too much", "not known"  # states of a replacement
PASSING = ("deploy", "as good and cheaper", "may replace it")
UNSCORED_ALLOWED = 0.05  # share of the rows


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        decision: the verdict.
        holds: whether it is the one.
        why: the words that follow the gain.
    """

    decision: Decision
    holds: Callable[[Case], bool]
    why: Callable[[Case], str]


def _failed_parity(case: Case) -> str:
    parity = case.evidence.parity
    assert parity is not None
    return f"but the form {parity.form} failed parity ({parity.reason})"


def _uncalibrated(case: Case) -> str:
    judge = case.evidence.judge
    assert judge is not None
    return f"but by a judge that nobody can rely on ({judge.calibration.reason})"


def _left_out(case: Case) -> str:
    c = max(case.comparisons, key=unscored_share)
    rows = c.n + c.unscored
    return (
        f"but {c.unscored} of {rows} rows ({percent(unscored_share(c))} %) have no score, {percent(UNSCORED_ALLOWED)} % may be"
    )


def _below_the_bar(case: Case) -> str:
    score, prompt, bar = (percent(x) for x in (case.score, case.best_prompt_score, case.terms.min_score or 0.0))
    return f"it scores {score} of 100, the best prompt {prompt}; task.min_score asks {bar}"


def _wanted(case: Case) -> str:
    return f"the {percent(case.terms.min_gain)} points asked for"


def _shown(case: Case) -> str:
    """What was shown, and no more than that."""
    others = "" if len(case.comparisons) == 1 else f" than each of {len(case.comparisons)} prompts"
    if all(rule.worth(c, case.terms) == "certain" for c in case.comparisons):
        return f"better for certain{others}, and for certain by {_wanted(case)}"
    return f"better for certain{others}; that it is by {_wanted(case)} is likely, not certain"


def _cheaper(case: Case) -> str:
    """As good to within the margin, and the arithmetic of the saving."""
    saving, others = case.evidence.saving, "" if len(case.comparisons) == 1 else f" of {len(case.comparisons)} prompts"
    assert saving is not None
    return f"for certain less than {percent(case.terms.min_gain)} points behind the best{others}, and cheaper: it {saving.even}"


def _not_replaced(case: Case, state: str) -> str:
    each = first_that(case.replaced, state)
    assert each is not None
    return replacement.why_not(each, case.terms)


def _merit(case: Case) -> str:
    if case.is_shown:
        return _shown(case)
    return _cheaper(case) if case.is_cheaper else replacement.replaces(case.replaced, case.terms)


def _lost_skills(case: Case) -> str:
    forgetting = case.evidence.forgetting
    assert forgetting is not None
    return f"{_merit(case)}; but general skills were lost ({forgetting.reason})"


def _unknown_skills(case: Case) -> str:
    return f"{_merit(case)}; but whether general skills were lost is not known, and evaluate.forgetting.required asks for it"


def _few_seeds(case: Case) -> str:
    runs = len(case.seed_gains)
    return (
        f"{_shown(case)}; but {case.seeds_that_gain} of {runs} seeds gain {_wanted(case)}: it is the luck of one training run"
    )


def _cannot_tell(case: Case) -> str:
    if rule.is_shown(case.headline, case.terms):
        return "that is shown against this prompt, and not against every other"
    if case.headline.low > 0.0:
        return f"better for certain; it can be by more or less than {_wanted(case)}"
    return f"it can be more or less than {_wanted(case)}"


RULES = (
    Rule(NOT_TRAINED, lambda c: c.evidence.parity is not None and c.evidence.parity.state == "not deployable", _failed_parity),
    Rule(
        "not calibrated",
        lambda c: c.evidence.judge is not None and not c.evidence.judge.calibration.calibrated,
        _uncalibrated,
    ),
    Rule(
        "too little data to tell", lambda c: any(unscored_share(each) > UNSCORED_ALLOWED for each in c.comparisons), _left_out
    ),
    Rule(
        "not good enough",
        lambda c: c.terms.min_score is not None and max(c.score, c.best_prompt_score) < c.terms.min_score,
        _below_the_bar,
    ),
    Rule("regression", lambda c: c.has_merit and c.forgot == "regression", _lost_skills),
    Rule(
        "too little data to tell",
        lambda c: c.has_merit and c.evidence.forgetting_required and c.forgot != "no regression",
        _unknown_skills,
    ),
    Rule("not good enough", lambda c: first_that(c.replaced, LOSES) is not None, lambda c: _not_replaced(c, LOSES)),
    Rule("too little data to tell", lambda c: first_that(c.replaced, UNKNOWN) is not None, lambda c: _not_replaced(c, UNKNOWN)),
    Rule("too little data to tell", lambda c: c.is_shown and 2 * c.seeds_that_gain < len(c.seed_gains), _few_seeds),
    Rule("deploy", lambda c: c.is_shown, _shown),
    Rule("as good and cheaper", lambda c: c.is_cheaper, _cheaper),
    Rule("may replace it", lambda c: c.may_replace, lambda c: replacement.replaces(c.replaced, c.terms)),
    Rule(
        "prompting is enough",
        lambda c: rule.is_ruled_out(c.headline, c.terms) and c.headline.gain > 0.0,
        lambda c: f"ahead, but for certain by less than {_wanted(c)}",
    ),
    Rule(
        "not better",
        lambda c: rule.is_ruled_out(c.headline, c.terms),
        lambda c: f"a gain of {percent(c.terms.min_gain)} points is ruled out, and there is none",
    ),
    Rule("too little data to tell", lambda c: True, _cannot_tell),
)


def terms_of(task: Task) -> Terms:
    """What a recipe asks."""
    return Terms(min_gain=task.min_gain, certainty=task.certainty, min_score=task.min_score)


def decide(case: Case) -> Rule:
    """The first rule that holds."""
    return next(row for row in RULES if row.holds(case))


def is_borderline(case: Case) -> bool:
    """Whether one standard error more or less of every gain would decide otherwise."""
    decision = decide(case).decision
    return any(decide(_shifted(case, sign)).decision != decision for sign in (-1.0, 1.0))


def verdict(
    outputs: dict[str, list[Output]],
    selection: Selection,
    metric: Metric,
    terms: Terms,
    groups: list[str] | None = None,
    evidence: Evidence = NOTHING,
    replace: Collection[str] = (),
) -> Verdict:
    """Everything that the terminal and the report print.

    Args:
        outputs: by the name of an arm or finalist, on the same rows in the same order.
        selection: names the finalists, chosen on dev.
        terms: what the recipe asks.
        groups: the group of each row, where rows belong together.
        replace: arms that the tuned model is to take the place of.

    Raises:
        RunError: no tuned arm or not every finalist was scored, or no row can be compared.
    """
    tries = evidence.tries or Tries()
    terms = dataclasses.replace(terms, alpha=alpha_of(tries.place))
    chosen = _choose(outputs, selection, metric, terms, groups, evidence, replace)
    candidate, case, rivals, choice = chosen.name, chosen.case, chosen.rivals, evidence.choice
    terms = case.terms
    best = rivals[0]
    others = [name for name in outputs if name != best.name]
    against = {name: widened(compare(outputs[name], outputs[best.name], metric, groups), terms.alpha) for name in others}
    arms = tuple(arm_of(name, answers, metric, groups, against.get(name)) for name, answers in outputs.items())
    row, c = decide(case), best.comparison
    in_process = "tuned" if choice is None else choice.name
    both = in_process in outputs and "deployed" in outputs
    unsettled = row is RULES[-1]
    result = Verdict(
        decision=row.decision,
        exit_code=EXIT_CODES[row.decision],
        reason="",
        advice=(),
        candidate=candidate,
        score=case.score,
        best_prompt=best.name,
        rivals=rivals,
        ahead=chosen.ahead,
        terms=terms,
        better=case.is_better,
        worth=rule.worth(c, terms),
        n=c.n,
        unscored=c.unscored,
        clusters=c.units if c.units < c.n else None,
        metric=metric.name,
        corpus_metric=metric.corpus is not None,
        comparison=c,
        detectable=rule.detectable(c, terms),
        planned=rule.planned_gain(terms),
        n_needed=rule.rows_needed(c, rule.planned_gain(terms), terms),
        rows_to_settle=_rows_to_settle(case) if unsettled else None,
        borderline=row.decision != NOT_TRAINED and is_borderline(case),
        only_worse=evidence.only_worse,
        deployed_loss=compare(outputs["deployed"], outputs[in_process], metric, groups) if both else None,
        differing=_differing(outputs, candidate, best.name),
        forgetting=case.evidence.forgetting,
        parity=evidence.parity,
        seeds=evidence.seeds,
        as_good=case.is_as_good,
        saving=evidence.saving,
        seed_gains=case.seed_gains,
        judge=evidence.judge,
        retrieval=evidence.retrieval,
        candidates=chosen.candidates if len(chosen.candidates) > 1 else (),
        chosen=None if choice is None else choice.name,
        training_rows=evidence.training_rows,
        form=evidence.form,
        tries=tries,
        arms=arms,
        selection=selection,
        replaced=case.replaced,
    )
    reason = f"{gain_line(result)}: {row.why(case)}{remarks(result)}"
    return dataclasses.replace(result, reason=reason, advice=tuple(advice(result, unsettled)))


def choose(
    outputs: dict[str, list[Output]],
    selection: Selection,
    metric: Metric,
    terms: Terms,
    groups: list[str] | None = None,
    evidence: Evidence = NOTHING,
    replace: Collection[str] = (),
) -> tuple[str, tuple[CandidateResult, ...]]:
    """The arm of the one of several candidates that is to be deployed, and how each stands; arguments as of ``verdict``.

    Raises:
        RunError: no tuned arm or not every finalist was scored, or no row can be compared.
    """
    terms = dataclasses.replace(terms, alpha=alpha_of((evidence.tries or Tries()).place))
    chosen = _choose(outputs, selection, metric, terms, groups, evidence, replace)
    return chosen.name, chosen.candidates


class _Chosen(NamedTuple):
    """The candidate that the verdict is of.

    Attributes:
        candidates: all of them.
        rivals, ahead: see ``rivals_of``.
    """

    candidates: tuple[CandidateResult, ...]
    name: str
    case: Case
    rivals: tuple[Rival, ...]
    ahead: tuple[str, ...]


def _choose(
    outputs: dict[str, list[Output]],
    selection: Selection,
    metric: Metric,
    terms: Terms,
    groups: list[str] | None,
    evidence: Evidence,
    replace: Collection[str],
) -> _Chosen:
    """The highest of those that pass, or of all, or the file of the one that was chosen; arguments as of ``verdict``."""
    found_at = functools.cache(lambda name, alpha: rivals_of(outputs, name, selection, metric, groups, alpha))

    def rivals_at(name: str, alpha: float) -> Sequence[Rival]:
        return found_at(name, alpha)[0]

    def case_at(name: str, alpha: float) -> Case:
        own = dataclasses.replace(terms, alpha=alpha)
        replaced = tuple(_replacement(outputs, name, other, metric, groups, own) for other in replace)
        case = case_of(rivals_at(name, alpha), figure_of(outputs[name], metric), own, evidence.of(name))
        return dataclasses.replace(case, replaced=replaced)

    if evidence.choice is None:
        candidates, levels = _standings(candidates_of(outputs), terms.alpha, rivals_at, case_at)
        name = max(candidates, key=lambda one: (one.decision in PASSING, one.score)).name
        level = levels[name]
    else:
        candidates, name = evidence.choice.candidates, "deployed"
        level = share_of_one(terms.alpha, len(candidates))
    rivals, ahead = found_at(name, level)
    not_held = tuple(other for other in ahead if other not in replace)
    return _Chosen(candidates=candidates, name=name, case=case_at(name, level), rivals=rivals, ahead=not_held)


def _standings(
    names: Sequence[str],
    alpha: float,
    rivals_at: Callable[[str, float], Sequence[Rival]],
    case_at: Callable[[str, float], Case],
) -> tuple[tuple[CandidateResult, ...], dict[str, float]]:
    """What would be decided of each candidate alone, and the level that it is decided at."""

    def passes(name: str, alpha: float) -> bool:
        return all(rival.comparison.low > 0.0 for rival in rivals_at(name, alpha))

    comparisons = {name: [rival.comparison for rival in rivals_at(name, alpha)] for name in names}
    hardest = {name: max(c.p if c.gain > 0.0 else 2.0 - c.p for c in of) for name, of in comparisons.items()}
    levels = holm(hardest, alpha, passes)
    results: list[CandidateResult] = []
    for name in names:
        case, strongest = case_at(name, levels[name]), rivals_at(name, levels[name])[0]
        results.append(
            CandidateResult(
                name=name,
                decision=decide(case).decision,
                score=case.score,
                best_prompt=strongest.name,
                comparison=strongest.comparison,
                forgetting=case.evidence.forgetting,
            )
        )
    return tuple(results), levels


def case_of(rivals: Sequence[Rival], score: float, terms: Terms, evidence: Evidence = NOTHING) -> Case:
    """What the rules look at.

    Args:
        rivals: the strongest first.
        score: the candidate's.
    """
    runs = () if evidence.seeds is None else evidence.seeds.runs
    return Case(
        terms=terms,
        comparisons=tuple(rival.comparison for rival in rivals),
        score=score,
        best_prompt_score=max(rival.score for rival in rivals),
        seed_gains=tuple(run.score - rivals[0].score for run in runs),
        evidence=evidence,
    )


def _replacement(
    outputs: dict[str, list[Output]], candidate: str, name: str, metric: Metric, groups: list[str] | None, terms: Terms
) -> Replacement:
    against = widened(compare(outputs[candidate], outputs[name], metric, groups), terms.alpha)
    return replacement.replacement(name, figure_of(outputs[name], metric), against, terms)


def _rows_to_settle(case: Case) -> int | None:
    """Rows that settle the hardest of the comparisons; None where no number would."""
    rows = [rule.rows_to_settle(c, case.terms) for c in case.comparisons]
    return None if None in rows else max(number or 0 for number in rows)


def _shifted(case: Case, sign: float) -> Case:
    replaced = tuple(
        replacement.replacement(each.name, each.score, _moved(each.comparison, sign), case.terms) for each in case.replaced
    )
    return dataclasses.replace(case, comparisons=tuple(_moved(c, sign) for c in case.comparisons), replaced=replaced)


def _moved(c: Comparison, sign: float) -> Comparison:
    step = sign * standard_error(c)
    return dataclasses.replace(c, gain=c.gain + step, low=c.low + step, high=c.high + step)


def _differing(outputs: dict[str, list[Output]], candidate: str, best_prompt: str) -> Differing:
    ids = [output.id for output in outputs[candidate]]
    difference = scores(outputs[candidate]) - scores(outputs[best_prompt])
    largest_first = np.argsort(-np.abs(np.nan_to_num(difference)), kind="stable").tolist()
    best_of_prompts = np.max([scores(answers) for name, answers in outputs.items() if not is_tuned(name)], axis=0)
    ahead = scores(outputs[candidate]) > best_of_prompts
    return Differing(
        won=tuple(ids[i] for i in largest_first if difference[i] > 0),
        lost=tuple(ids[i] for i in largest_first if difference[i] < 0),
        only_tuning=tuple(row_id for row_id, alone in zip(ids, ahead.tolist(), strict=True) if alone),
    )
