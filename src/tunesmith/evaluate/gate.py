"""The verdict: is the tuned model, in the form it will be deployed in, worth it over the best prompt?

The gain is the paired difference on the sealed test part, with an interval [low, high] (``compare.py`` says which).
Six verdicts, decided in this order by nothing but these numbers, ``task.min_gain``, the forgetting suite and parity:

    not the model that was trained   the deployed form failed parity (``export/parity.json``), where that was measured
    deploy                    gain >= min_gain and low > 0: better for certain, and by enough
    regression                the same, but general skills were lost (``forgetting.json``)
    not better                high < min_gain and gain <= 0: a worthwhile gain is ruled out, and there is none
    prompting is enough       high < min_gain and gain > 0: ahead, but for certain by less than it is worth
    too little data to tell   anything else: the interval holds both a worthwhile gain and too small a one

The best prompt arm was chosen on dev. When no deployed arm was scored the verdict is on the tuned arm, and says so.

**One comparison decides**, named before the test part was read: the candidate against the best prompt. Its interval needs no
correction. The other arms are shown beside it; their p-values are adjusted for their number (Holm), since the eye looks for
the best of them.

**A deployed form that failed parity** outranks every other verdict: its answers, good or bad, are those of another model than
the one that was trained, so they decide nothing about training. A form whose parity could not be told is scored like any
other, and the reason says so.

**A forgetting suite that cannot tell** is said and does not block, unless the recipe asks for it
(``evaluate.forgetting.required``): else a probe set that is too small would veto every run.

**A run that only got worse** (no checkpoint had a lower dev loss than the untouched model) is said in the reason: its adapter
is the one that changes nothing, so its gain is the gain of the short prompt.

**Borderline** is a verdict that would be another one if the gain had come out one standard error higher or lower. The interval
speaks for this adapter on other rows; it does not speak for the adapter that another seed would have given. So a borderline
verdict asks for ``evaluate.seeds: 3``, and with them says how many of the seeds gain enough. It does not average them: what
is deployed is one adapter, and the interval is about that one.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.errors import RunError
from tunesmith.evaluate import stats
from tunesmith.evaluate.arms import summary
from tunesmith.evaluate.compare import compare, figure_with_interval, rows_needed, scores, standard_error
from tunesmith.evaluate.metrics import Metric
from tunesmith.formatting import percent, points, points_between
from tunesmith.rundir.records.evaluation import Arm, Comparison, Decision, Differing, Output, Selection, Totals, Verdict
from tunesmith.rundir.records.evidence import Forgetting, Judgement, NonInferiority, RetrievalRecall, Seeds
from tunesmith.rundir.records.parity import FormParity

NOT_TRAINED: Decision = "not the model that was trained"
EXIT_CODES: dict[Decision, int] = {
    "deploy": 0,
    "prompting is enough": 10,
    "not better": 11,
    "too little data to tell": 12,
    "regression": 13,
    NOT_TRAINED: 14,
}
TUNED_ARMS = ("tuned", "tuned_retrieval", "deployed")
MAX_ROWS_FACTOR = 100  # times the rows there are: no number to collect


def decide(
    comparison: Comparison, min_gain: float, forgetting: NonInferiority | None = None, required: bool = False
) -> Decision:
    """One of the five verdicts on the numbers.

    Args:
        forgetting: verdict of the forgetting suite, None when it was not run.
        required: whether a suite that cannot tell blocks as well.
    """
    if comparison.gain >= min_gain and comparison.low > 0.0:
        if forgetting == "regression":
            return "regression"
        return "too little data to tell" if required and forgetting != "no regression" else "deploy"
    if comparison.high < min_gain:
        return "prompting is enough" if comparison.gain > 0.0 else "not better"
    return "too little data to tell"


def is_borderline(comparison: Comparison, min_gain: float) -> bool:
    """Whether one standard error more or less of gain would decide otherwise."""
    decision = decide(comparison, min_gain)
    return any(decide(_moved(comparison, sign), min_gain) != decision for sign in (-1.0, 1.0))


def rows_to_settle(comparison: Comparison, min_gain: float) -> int | None:
    """Test rows, all together, that settle with 80 % power what these could not, if the gain stays what it was here.

    Settled is a gain that is large enough when its interval clears zero, and a smaller one when it clears ``min_gain``.
    ``rows_needed(comparison, min_gain)`` is the same for a gain of exactly ``min_gain``: what to collect when nothing is to be
    taken from the gain seen here, which is the luckier the fewer the rows.

    Returns:
        None where no number would do: the gain sits on the border.
    """
    gain, n = comparison.gain, comparison.n
    rows = rows_needed(comparison, gain if gain >= min_gain else min_gain - gain)
    return None if rows is None or rows > MAX_ROWS_FACTOR * n else max(n + 1, rows)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What else was measured of a run; None for what was not.

    Attributes:
        forgetting: a regression blocks; with ``forgetting_required`` so does a suite that cannot tell.
        seeds: the spread over training seeds, on the same rows.
        parity: of the deployed form.
        judge: what was found of the judge.
        retrieval: whether the right passages were found.
        only_worse: whether training lowered no dev loss.
    """

    forgetting: Forgetting | None = None
    forgetting_required: bool = False
    seeds: Seeds | None = None
    parity: FormParity | None = None
    judge: Judgement | None = None
    retrieval: RetrievalRecall | None = None
    only_worse: bool = False


NOTHING = Evidence()


def verdict(
    outputs: dict[str, list[Output]],
    selection: Selection,
    metric: Metric,
    min_gain: float,
    groups: list[str] | None = None,
    evidence: Evidence = NOTHING,
) -> Verdict:
    """Everything that the terminal and the report print.

    Args:
        outputs: by arm name, on the same rows in the same order.
        selection: names the prompt arm to beat, chosen on dev.
        groups: ``data.group_by`` value of each row, where the rows have one.

    Raises:
        RunError: no tuned arm was scored, or no row can be compared.
    """
    candidate, best_prompt = "deployed" if "deployed" in outputs else "tuned", selection.best_prompt
    if candidate not in outputs:
        raise RunError("neither the deployed nor the tuned arm was scored", "run: tunesmith evaluate RUN")
    others = [name for name in outputs if name != best_prompt]
    comparisons = [compare(outputs[name], outputs[best_prompt], metric, groups) for name in others]
    adjusted = stats.holm([c.p for c in comparisons])
    against = {name: dataclasses.replace(c, p_holm=p) for name, c, p in zip(others, comparisons, adjusted, strict=True)}
    comparison = against[candidate]
    forgetting = None if evidence.forgetting is None else evidence.forgetting.verdict
    decision = decide(comparison, min_gain, forgetting, evidence.forgetting_required)
    if evidence.parity is not None and evidence.parity.state == "not deployable":
        decision = NOT_TRAINED
    both = "tuned" in outputs and "deployed" in outputs
    unsettled = decision == "too little data to tell" and decide(comparison, min_gain) == decision
    arms = tuple(_arm(name, answers, metric, groups, against.get(name)) for name, answers in outputs.items())
    best = next(arm.score for arm in arms if arm.name == best_prompt)
    assert best is not None  # figure_with_interval refuses an arm without a score
    seeds = evidence.seeds
    result = Verdict(
        decision=decision,
        exit_code=EXIT_CODES[decision],
        reason=_reason(decision, comparison, candidate, best_prompt, min_gain, evidence),
        advice=(),
        candidate=candidate,
        best_prompt=best_prompt,
        min_gain=min_gain,
        n=comparison.n,
        unscored=comparison.unscored,
        clusters=comparison.units if comparison.units < comparison.n else None,
        metric=metric.name,
        corpus_metric=metric.corpus is not None,
        comparison=comparison,
        n_needed=rows_needed(comparison, min_gain),
        rows_to_settle=rows_to_settle(comparison, min_gain) if unsettled else None,
        borderline=decision != NOT_TRAINED and is_borderline(comparison, min_gain),
        only_worse=evidence.only_worse,
        deployed_loss=compare(outputs["deployed"], outputs["tuned"], metric, groups) if both else None,
        differing=_differing(outputs, candidate, best_prompt),
        forgetting=evidence.forgetting,
        parity=evidence.parity,
        seeds=seeds,
        seed_gains=() if seeds is None else tuple(run.score - best for run in seeds.runs),
        judge=evidence.judge,
        retrieval=evidence.retrieval,
        arms=arms,
        selection=selection,
    )
    return dataclasses.replace(result, advice=tuple(_advice(result, unsettled)))


def _moved(c: Comparison, sign: float) -> Comparison:
    step = sign * standard_error(c)
    return dataclasses.replace(c, gain=c.gain + step, low=c.low + step, high=c.high + step)


def _arm(name: str, outputs: Sequence[Output], metric: Metric, groups: list[str] | None, against: Comparison | None) -> Arm:
    figure, interval = figure_with_interval(outputs, metric, groups)
    costs = [output.cost for output in outputs if output.cost is not None]
    totals = Totals(
        prompt_tokens=sum(output.prompt_tokens for output in outputs),
        new_tokens=sum(output.new_tokens for output in outputs),
        seconds=sum(output.seconds for output in outputs),
        cost=sum(costs) if costs else None,
    )
    figures = {**vars(summary(name, outputs, metric)), "score": figure}
    return Arm(**figures, low=interval.low, high=interval.high, totals=totals, against=against)


def _differing(outputs: dict[str, list[Output]], candidate: str, best_prompt: str) -> Differing:
    ids = [output.id for output in outputs[candidate]]
    difference = scores(outputs[candidate]) - scores(outputs[best_prompt])
    largest_first = np.argsort(-np.abs(np.nan_to_num(difference)), kind="stable").tolist()
    best_of_prompts = np.max([scores(answers) for name, answers in outputs.items() if name not in TUNED_ARMS], axis=0)
    ahead = scores(outputs[candidate]) > best_of_prompts
    return Differing(
        won=tuple(ids[i] for i in largest_first if difference[i] > 0),
        lost=tuple(ids[i] for i in largest_first if difference[i] < 0),
        only_tuning=tuple(row_id for row_id, alone in zip(ids, ahead.tolist(), strict=True) if alone),
    )


def _reason(decision: Decision, c: Comparison, candidate: str, best_prompt: str, min_gain: float, evidence: Evidence) -> str:
    gain = f"{candidate} gains {points(c.gain)} points over {best_prompt}, 95 % interval {points_between(c.low, c.high)}"
    wanted = f"the {percent(min_gain)} points asked for"
    enough = f"above zero, and at least {wanted}"
    why = {
        "deploy": enough,
        "regression": enough,
        "not better": f"a gain of {percent(min_gain)} points is ruled out, and there is none",
        "prompting is enough": f"ahead, but for certain by less than {wanted}",
        "too little data to tell": f"it can be more or less than {wanted}",
        NOT_TRAINED: "",
    }[decision]
    if decision == NOT_TRAINED and evidence.parity is not None:
        why = f"but the form {evidence.parity.form} failed parity ({evidence.parity.reason})"
    if decision == "too little data to tell" and decide(c, min_gain) == "deploy":
        why = f"{enough}; but whether general skills were lost is not known, and evaluate.forgetting.required asks for it"
    elif evidence.forgetting is not None and evidence.forgetting.verdict == "regression":
        link = "but general skills were lost" if decision == "regression" else "general skills were lost as well"
        why += f"; {link} ({evidence.forgetting.reason})"
    elif evidence.forgetting is not None and evidence.forgetting.verdict != "no regression" and decision == "deploy":
        why += "; whether general skills were lost is not known"
    if evidence.parity is not None and evidence.parity.state == "unknown":
        why += f"; whether {evidence.parity.form} is the model that was trained is not known ({evidence.parity.reason})"
    worse = "; training lowered no dev loss, so the adapter is the untouched one of step 0" if evidence.only_worse else ""
    unscored = f"; {c.unscored} rows are unscored and left out" if c.unscored else ""
    form = "" if candidate == "deployed" else "; the deployed form was not scored"
    return f"{gain}: {why}{worse}{unscored}{form}"


def _advice(verdict: Verdict, unsettled: bool) -> list[str]:
    """What would make the verdict surer, a sentence each."""
    sentences: list[str] = []
    if verdict.decision == NOT_TRAINED:
        sentences.append("fix the export, run tunesmith parity, and evaluate the deployed arm again")
    c, n, wanted = verdict.comparison, verdict.n, f"{percent(verdict.min_gain)} points"
    if verdict.only_worse:
        sentences.append("lower train.learning_rate: the untouched model had the lowest dev loss of all checkpoints")
    if unsettled:
        settled, needed = verdict.rows_to_settle, verdict.n_needed
        kind = "test rows" if verdict.clusters is None else f"test rows (in groups, as these {verdict.clusters})"
        if settled is None:
            sentences.append(f"the gain sits on the border of {wanted}: more rows will hardly settle it")
        else:
            sentences.append(f"if the gain stays what it is, about {settled - n:,} more {kind} settle it")
        if needed is not None and needed > n:
            sentences.append(f"to find a gain of {wanted} four times in five takes {needed:,} in all")
    if verdict.borderline and verdict.seeds is None:
        sentences.append("one standard error more or less decides otherwise: train with evaluate.seeds: 3 to see the spread")
    if gains := verdict.seed_gains:
        enough = sum(gain >= verdict.min_gain for gain in gains)
        sentences.append(
            f"{enough} of {len(gains)} seeds gain at least {wanted} ({points_between(min(gains), max(gains))}), "
            "before quantisation"
        )
    if n and c.unscored > 0.1 * (n + c.unscored):
        sentences.append(f"{c.unscored} of {n + c.unscored} rows are unscored: if they differ from the rest, so does the gain")
    return sentences
