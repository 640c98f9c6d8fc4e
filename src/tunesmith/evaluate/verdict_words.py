"""The sentences around a verdict: what was measured, what is not known, and what would make it surer.

Nothing is decided here; ``gate.py`` does. A sentence claims what the numbers beside it show, and says so where a bar, a form
or a check is missing: a ``deploy`` at 15 of 100 without a word that no bar was set reads as praise.
"""

from tunesmith.evaluate.compare import gain_of_all_rows
from tunesmith.evaluate.rule import MAX_ROWS_FACTOR
from tunesmith.formatting import percent, points, points_between
from tunesmith.recipe.tuned import TUNED_OF
from tunesmith.rundir.records.evaluation import Verdict

USED = ("deploy", "as good and cheaper", "may replace it")  # decisions after which the model may be used


def gain_line(verdict: Verdict) -> str:
    """The headline with its interval."""
    c, best = verdict.comparison, verdict.rivals[0]
    kind = "" if best.finalist else ", which dev did not choose and which is the strongest on the test part"
    of = "" if verdict.chosen is None else f" ({verdict.chosen.removeprefix(TUNED_OF)})"
    return (
        f"{verdict.candidate}{of} gains {points(c.gain)} points over {verdict.best_prompt}{kind}, "
        f"{c.level} % interval {points_between(c.low, c.high)}"
    )


def remarks(verdict: Verdict) -> str:
    """What goes with the reason: each begins with a semicolon."""
    lines: list[str] = []
    weakest = min(verdict.rivals, key=lambda rival: rival.comparison.low)
    if verdict.comparison.low > 0.0 >= weakest.comparison.low:
        c = weakest.comparison
        lines.append(f"over {weakest.way} it gains {points(c.gain)} ({points_between(c.low, c.high)})")
    lines += _about_the_bar(verdict)
    forgetting, parity = verdict.forgetting, verdict.parity
    if forgetting is not None and forgetting.verdict == "regression" and verdict.decision not in ("regression", *USED):
        lines.append(f"general skills were lost as well ({forgetting.reason})")
    if verdict.decision in USED and (forgetting is None or forgetting.verdict != "no regression"):
        lines.append("whether general skills were lost is not known")
    if parity is not None and parity.state == "unknown":
        lines.append(f"whether {parity.form} is the model that was trained is not known ({parity.reason})")
    if verdict.training_rows == "unknown":
        lines.append("whether the model was trained on these test rows is not known (data.trained_on)")
    if len(verdict.candidates) > 1:
        lines.append(_among_candidates(verdict))
    if verdict.only_worse:
        lines.append("training lowered no dev loss, so the adapter is the untouched one of step 0")
    for each in verdict.replaced:
        if each.state == "may replace it" and verdict.decision != "may replace it":
            c = each.comparison
            lines.append(f"it may replace {each.name}, over which it gains {points(c.gain)} ({points_between(c.low, c.high)})")
    if verdict.ahead:
        lines.append(f"{' and '.join(verdict.ahead)}, which the recipe does not hold against it, scored higher")
    if verdict.unscored:
        low, high = gain_of_all_rows(verdict.comparison)
        lines.append(
            f"{verdict.unscored} rows are unscored and left out: were all of them lost, the gain would be {points(low)}, "
            f"were all won {points(high)}"
        )
    if verdict.tries.place > 1 or verdict.tries.lacking is not None:
        lines.append(verdict.tries.line)
    if verdict.candidate != "deployed" and verdict.form != "endpoint" and not _is_file(verdict):
        lines.append("the deployed form was not scored")
    return "".join(f"; {line}" for line in lines)


def _among_candidates(verdict: Verdict) -> str:
    """What else could have been the candidate."""
    chosen = verdict.chosen or verdict.candidate
    others = ", ".join(f"{one.name} {percent(one.score)}" for one in verdict.candidates if one.name != chosen)
    count = len(verdict.candidates)
    if verdict.chosen is None:
        return f"the highest of {count} candidates, each asked for its share: {others}"
    score = next(one.score for one in verdict.candidates if one.name == chosen)
    told = f"{chosen} was chosen from {count} candidates at {percent(score)}, its file is asked for the share of one"
    return f"{told}; the others: {others}"


def _is_file(verdict: Verdict) -> bool:
    """Whether the chosen one of several candidates is a GGUF, which was asked as it is deployed."""
    return verdict.form == "several" and verdict.forgetting is not None and bool(verdict.forgetting.form)


def _about_the_bar(verdict: Verdict) -> list[str]:
    """Whether the candidate is good enough, where it would be deployed."""
    arm, bar = verdict.arm(verdict.candidate), verdict.terms.min_score
    between = f"{percent(arm.low)} to {percent(arm.high)}"
    if verdict.decision == "not good enough":
        return [f"95 % interval of {verdict.candidate} {between}"]
    if verdict.decision not in USED:
        return []
    if bar is None:
        return [
            f"it scores {percent(arm.score)} of 100 ({between}), and no bar was set for what is good enough (task.min_score)"
        ]
    sure = "for certain" if arm.low >= bar else "which is likely, not certain"
    return [f"it scores {percent(arm.score)} of 100 ({between}), at least the {percent(bar)} of task.min_score, {sure}"]


def advice(verdict: Verdict, unsettled: bool) -> list[str]:
    """What would make the verdict surer, a sentence each.

    Args:
        unsettled: whether more test rows are what is missing.
    """
    sentences: list[str] = []
    if verdict.decision == "not the model that was trained":
        again = "convert the file again" if verdict.form == "gguf" else "fix the export"
        sentences.append(f"{again}, run tunesmith parity, and evaluate the deployed arm again")
    if verdict.decision == "not calibrated":
        sentences.append(
            "compare the judge with 100 labels of people (task.judge.human_labels); below kappa 0.6 take another one"
        )
    gain = f"{percent(verdict.terms.min_gain)} points"
    if verdict.only_worse:
        sentences.append("lower train.learning_rate: the untouched model had the lowest dev loss of all checkpoints")
    if verdict.decision == "not good enough":
        sentences.append("neither is to be used as it is: more or better rows, a larger base, or a lower task.min_score")
    if unsettled:
        sentences += _rows_that_settle(verdict)
    if verdict.form == "several" and verdict.chosen is None:
        name = verdict.candidate.removeprefix(TUNED_OF)
        missing = "its parity is" if _is_file(verdict) else "its deployed form and its parity are"
        sentences.append(f"gate {name} alone: {missing} measured there")
    if verdict.borderline and verdict.form != "trained":
        sentences.append("one standard error more or less decides otherwise: more test rows would tell")
    elif verdict.borderline and verdict.seeds is None:
        sentences.append("one standard error more or less decides otherwise: train with evaluate.seeds: 3 to see the spread")
    if gains := verdict.seed_gains:
        enough = sum(gain >= verdict.terms.min_gain for gain in gains)
        sentences.append(
            f"{enough} of {len(gains)} seeds gain at least {gain} ({points_between(min(gains), max(gains))}), "
            "before quantisation"
        )
    shown = verdict.comparison.low >= verdict.terms.min_gain  # then nobody asks whether it is as good
    if verdict.as_good and verdict.candidate == "deployed" and verdict.saving is None and not shown:
        sentences.append(
            f"{verdict.candidate} is for certain less than {gain} behind the best prompt: to know whether it is cheaper, add "
            "prompt_deployed to evaluate.arms and set advise.calls_per_month and evaluate.price_per_hour"
        )
    return sentences


def _rows_that_settle(verdict: Verdict) -> list[str]:
    settled, needed, n = verdict.rows_to_settle, verdict.n_needed, verdict.n
    kind = "test rows" if verdict.clusters is None else f"test rows (in groups, as these {verdict.clusters})"
    if settled is None:
        rows = f"{MAX_ROWS_FACTOR * n:,} {kind}"
        sentences = [f"the gain is so near {percent(verdict.terms.min_gain)} points that {rows} would not settle it"]
    else:
        sentences = [f"if the gain stays what it is, {settled - n:,} more {kind} settle it four times in five"]
    if needed is not None and needed > n:
        sentences.append(
            f"a true gain of {percent(verdict.planned)} points is deployed four times in five from {needed:,} rows on"
        )
    return sentences
