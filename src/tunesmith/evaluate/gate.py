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
the one that was trained, so they decide nothing about training.

**A forgetting suite that cannot tell** is said and does not block, unless it was asked to
(``evaluate.forgetting.required``): else a probe set that is too small would veto every run.

**Borderline** is a verdict that would be another one if the gain had come out one standard error higher or lower. The interval
speaks for this adapter on other rows; it does not speak for the adapter that another seed would have given. So a borderline
verdict asks for ``evaluate.seeds: 3``, and with them says how many of the seeds gain enough. It does not average them: what
is deployed is one adapter, and the interval is about that one.
"""

import dataclasses
from typing import Any

import numpy as np

from tunesmith.errors import RunError
from tunesmith.evaluate import stats
from tunesmith.evaluate.arms import Outputs, summary
from tunesmith.evaluate.compare import Comparison, compare, figure_with_interval, scores
from tunesmith.evaluate.metrics import HEADLINE, Metric
from tunesmith.rundir.records.parity import FormParity

NOT_TRAINED = "not the model that was trained"
EXIT_CODES = {
    "deploy": 0,
    "prompting is enough": 10,
    "not better": 11,
    "too little data to tell": 12,
    "regression": 13,
    NOT_TRAINED: 14,
}
TUNED_ARMS = ("tuned", "tuned_retrieval", "deployed")
MAX_ROWS_FACTOR = 100  # times the rows there are: no number to collect


def decide(comparison: Comparison, min_gain: float, forgetting: str | None = None, required: bool = False) -> str:
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
    decided = decide(comparison, min_gain)
    return any(decide(_moved(comparison, sign), min_gain) != decided for sign in (-1.0, 1.0))


def rows_to_settle(comparison: Comparison, min_gain: float) -> int | None:
    """Test rows, all told, that settle with 80 % power what these could not, if the gain stays what it was here.

    Settled is a gain that is large enough when its interval clears zero, and a smaller one when it clears ``min_gain``.
    ``Comparison.needed(min_gain)`` is the same for a gain of exactly ``min_gain``: what to collect when nothing is to be
    taken from the gain seen here, which is the luckier the fewer the rows.

    Returns:
        None where no number would do: the gain sits on the border.
    """
    gain, n = comparison.gain, comparison.n
    rows = comparison.needed(gain if gain >= min_gain else min_gain - gain)
    return None if rows is None or rows > MAX_ROWS_FACTOR * n else max(n + 1, rows)


def verdict(
    arms: dict[str, Outputs],
    best_prompt: str,
    metric: Metric,
    min_gain: float,
    groups: list[str] | None = None,
    forgetting: dict[str, Any] | None = None,
    seeds: dict[str, Any] | None = None,
    parity: FormParity | None = None,
) -> dict[str, Any]:
    """Everything that the terminal and the report print.

    Args:
        arms: outputs by arm name, on the same rows in the same order.
        best_prompt: the prompt arm chosen on dev.
        groups: ``data.group_by`` value of each row, where the rows have one.
        forgetting: ``verdict`` and ``reason`` of the forgetting suite (a regression blocks), and whether "no regression" is
            ``required``.
        seeds: ``runs`` with the ``score`` of the tuned arm of each seed on the same rows, and what else is to be shown.
        parity: of the deployed form; one that is not deployable outranks all else, an unknown one changes nothing. None where
            that was not measured.

    Returns:
        ``verdict, exit_code, reason, candidate, best_prompt, min_gain, n``; ``comparison`` (``Comparison``, candidate against
        the best prompt); ``n_needed`` (rows that find ``min_gain`` with 80 % power), ``rows_to_settle`` (None unless these
        are too few), ``borderline``, ``advice`` (sentences); ``unscored``; ``metric`` and whether it is a ``corpus_metric``;
        ``clusters`` (groups compared, None when each row is its own); ``deployed_loss`` (``Comparison`` of deployed against
        tuned, None without both); ``differ`` (ids of rows ``won`` and ``lost`` against the best prompt, largest difference
        first, and of rows ``only_tuning`` gets right); ``forgetting``, ``parity``, ``seeds`` as given, the seeds with their
        ``gains``;
        ``arms``: of each arm the means of its figures, ``score`` with ``low`` and ``high``, ``unscored``, ``against`` and
        ``totals`` (tokens, seconds, cost).

    Raises:
        RunError: no tuned arm was scored, or no row can be compared.
    """
    candidate = "deployed" if "deployed" in arms else "tuned"
    if candidate not in arms:
        raise RunError("neither the deployed nor the tuned arm was scored", "run: tunesmith evaluate RUN")
    others = [name for name in arms if name != best_prompt]
    compared = [compare(arms[name], arms[best_prompt], metric, groups) for name in others]
    adjusted = stats.holm([c.p for c in compared])
    against = {name: dataclasses.replace(c, p_holm=p) for name, c, p in zip(others, compared, adjusted, strict=True)}
    comparison = against[candidate]
    forgotten = None if forgetting is None else forgetting["verdict"]
    decision = decide(comparison, min_gain, forgotten, bool(forgetting and forgetting.get("required")))
    if parity is not None and parity.state == "not deployable":
        decision = NOT_TRAINED
    both = "tuned" in arms and "deployed" in arms
    unsettled = decision == "too little data to tell" and decide(comparison, min_gain) == decision
    result = {
        "verdict": decision,
        "exit_code": EXIT_CODES[decision],
        "reason": _reason(decision, comparison, candidate, best_prompt, min_gain, forgetting, parity),
        "candidate": candidate,
        "best_prompt": best_prompt,
        "min_gain": min_gain,
        "n": comparison.n,
        "comparison": dataclasses.asdict(comparison),
        "n_needed": comparison.needed(min_gain),
        "rows_to_settle": rows_to_settle(comparison, min_gain) if unsettled else None,
        "unscored": comparison.unscored,
        "borderline": decision != NOT_TRAINED and is_borderline(comparison, min_gain),
        "metric": metric.name,
        "corpus_metric": metric.corpus is not None,
        "clusters": comparison.units if comparison.units < comparison.n else None,
        "deployed_loss": dataclasses.asdict(compare(arms["deployed"], arms["tuned"], metric, groups)) if both else None,
        "differ": _differ(arms, candidate, best_prompt),
        "forgetting": forgetting,
        "parity": None if parity is None else parity.to_json(),
        "seeds": None,
        "arms": [_of_arm(name, outputs, metric, groups, against.get(name)) for name, outputs in arms.items()],
    }
    if seeds is not None:
        best = next(arm["score"] for arm in result["arms"] if arm["arm"] == best_prompt)
        result["seeds"] = {**seeds, "gains": [run["score"] - best for run in seeds["runs"]]}
    result["advice"] = _advice(result, unsettled)
    return result


def _moved(c: Comparison, sign: float) -> Comparison:
    step = sign * c.standard_error
    return dataclasses.replace(c, gain=c.gain + step, low=c.low + step, high=c.high + step)


def _of_arm(
    name: str, outputs: Outputs, metric: Metric, groups: list[str] | None, against: Comparison | None
) -> dict[str, Any]:
    figure, low, high = figure_with_interval(outputs, metric, groups)
    totals = {key: sum(row[key] for row in outputs) for key in ("prompt_tokens", "new_tokens", "seconds")}
    priced = all("cost" in row for row in outputs)
    return {
        "arm": name,
        "low": low,
        "high": high,
        **summary(outputs),
        HEADLINE: figure,
        "totals": {**totals, "cost": sum(row["cost"] for row in outputs) if priced else None},
        "against": None if against is None else dataclasses.asdict(against),
    }


def _differ(arms: dict[str, Outputs], candidate: str, best_prompt: str) -> dict[str, list[str]]:
    """Ids of the rows where the candidate and the prompts differ; unscored rows are in none of the lists."""
    ids = [row["id"] for row in arms[candidate]]
    difference = scores(arms[candidate]) - scores(arms[best_prompt])
    largest_first = np.argsort(-np.abs(np.nan_to_num(difference)), kind="stable").tolist()
    best_of_prompts = np.max([scores(outputs) for name, outputs in arms.items() if name not in TUNED_ARMS], axis=0)
    ahead = scores(arms[candidate]) > best_of_prompts
    return {
        "won": [ids[i] for i in largest_first if difference[i] > 0],
        "lost": [ids[i] for i in largest_first if difference[i] < 0],
        "only_tuning": [row_id for row_id, alone in zip(ids, ahead.tolist(), strict=True) if alone],
    }


def _reason(
    decision: str,
    c: Comparison,
    candidate: str,
    best_prompt: str,
    min_gain: float,
    forgetting: dict[str, Any] | None,
    parity: FormParity | None,
) -> str:
    forgotten, found = (forgetting["verdict"], forgetting["reason"]) if forgetting is not None else (None, "")
    interval = f"95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}"
    gain = f"{candidate} gains {100 * c.gain:+.1f} points over {best_prompt}, {interval}"
    enough = f"above zero, and at least the {100 * min_gain:.1f} points asked for"
    why = {
        "deploy": enough,
        "regression": f"{enough}; but general skills were lost ({found})",
        "not better": f"a gain of {100 * min_gain:.1f} points is ruled out, and there is none",
        "prompting is enough": f"ahead, but for certain by less than the {100 * min_gain:.1f} points asked for",
        "too little data to tell": f"it can be more or less than the {100 * min_gain:.1f} points asked for",
        NOT_TRAINED: f"but the form {parity and parity.form} failed parity ({parity and parity.reason})",
    }[decision]
    if decision == "too little data to tell" and decide(c, min_gain) == "deploy":
        why = f"{enough}; but whether general skills were lost is not known, and evaluate.forgetting.required asks for it"
    elif forgotten == "regression" and decision != "regression":
        why += f"; general skills were lost as well ({found})"
    elif forgotten == "too little data to tell" and decision == "deploy":
        why += "; whether general skills were lost is not known"
    unscored = f"; {c.unscored} rows are unscored and left out" if c.unscored else ""
    form = "" if candidate == "deployed" else "; the deployed form was not scored"
    return f"{gain}: {why}{unscored}{form}"


def _advice(result: dict[str, Any], unsettled: bool) -> list[str]:
    """What would make the verdict surer, a sentence each."""
    sentences: list[str] = []
    if result["verdict"] == NOT_TRAINED:
        sentences.append("mend the export, run tunesmith parity, and evaluate the deployed arm again")
    c, min_gain, n = result["comparison"], result["min_gain"], result["n"]
    if unsettled:
        settled, needed = result["rows_to_settle"], result["n_needed"]
        kind = "test rows" if result["clusters"] is None else f"test rows (in groups, as these {result['clusters']})"
        if settled is None:
            sentences.append(f"the gain sits on the border of {100 * min_gain:.1f} points: more rows will hardly settle it")
        else:
            sentences.append(f"if the gain stays what it is, about {settled - n:,} more {kind} settle it")
        if needed is not None and needed > n:
            sentences.append(f"to find a gain of {100 * min_gain:.1f} points four times in five takes {needed:,} in all")
    if result["borderline"] and result["seeds"] is None:
        sentences.append("one standard error more or less decides otherwise: train with evaluate.seeds: 3 to see the spread")
    if result["seeds"] is not None:
        gains = result["seeds"]["gains"]
        enough = sum(gain >= min_gain for gain in gains)
        sentences.append(
            f"{enough} of {len(gains)} seeds gain at least {100 * min_gain:.1f} points "
            f"({100 * min(gains):+.1f} to {100 * max(gains):+.1f}), before quantisation"
        )
    if n and c["unscored"] > 0.1 * (n + c["unscored"]):
        sentences.append(
            f"{c['unscored']} of {n + c['unscored']} rows are unscored: if they differ from the rest, so does the gain"
        )
    return sentences
