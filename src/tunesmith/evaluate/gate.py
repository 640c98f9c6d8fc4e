"""The verdict: is the tuned model, in the form it will be deployed in, worth it over the best prompt?

The gain is the paired difference on the sealed test part, with an interval [low, high]
(paired bootstrap, kept honest when few rows differ: ``stats.gain_interval``). Four verdicts, decided
in this order by nothing but these numbers and ``task.min_gain``:

    deploy                    gain >= min_gain and low > 0: better for certain, and by enough
    not better                high < min_gain and gain <= 0: a worthwhile gain is ruled out, and there is none
    prompting is enough       high < min_gain and gain > 0: ahead, but for certain by less than it is worth
    too little data to tell   anything else: the interval holds both a worthwhile gain and too small a one

The best prompt arm was chosen on dev. When no deployed arm was scored the verdict is on the tuned arm, and says so.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunesmith.errors import RunError
from tunesmith.evaluate import stats
from tunesmith.evaluate.arms import Outputs, summary
from tunesmith.evaluate.metrics import HEADLINE

EXIT_CODES = {"deploy": 0, "prompting is enough": 10, "not better": 11, "too little data to tell": 12}


@dataclass(frozen=True)
class Comparison:
    """An arm against the best prompt arm, on the same rows.

    Attributes:
        gain: difference of the headline scores.
        low, high: 95 % interval of the gain.
        p: two-sided McNemar mid-p.
        won, lost: discordant rows: right only here, right only with the best prompt.
        detectable: smallest gain that these rows would find with 80 % power.
    """

    gain: float
    low: float
    high: float
    p: float
    won: int
    lost: int
    detectable: float


def compare(arm: Outputs, baseline: Outputs) -> Comparison:
    """Paired comparison of two arms.

    Raises:
        RunError: the arms were not asked the same rows.
    """
    if [row["id"] for row in arm] != [row["id"] for row in baseline]:
        raise RunError("two arms were scored on different rows", "run: tunesmith evaluate RUN")
    a = np.array([row[HEADLINE] for row in arm])
    b = np.array([row[HEADLINE] for row in baseline])
    won, lost = stats.discordant(a, b)
    low, high = stats.gain_interval(a, b)
    detectable = stats.minimum_detectable_effect(won, lost, len(a))
    return Comparison(float(a.mean() - b.mean()), low, high, stats.mcnemar_midp(won, lost), won, lost, detectable)


def decide(comparison: Comparison, min_gain: float) -> str:
    """One of the four verdicts."""
    if comparison.gain >= min_gain and comparison.low > 0.0:
        return "deploy"
    if comparison.high < min_gain:
        return "prompting is enough" if comparison.gain > 0.0 else "not better"
    return "too little data to tell"


def verdict(arms: dict[str, Outputs], best_prompt: str, min_gain: float) -> dict[str, Any]:
    """Everything that the terminal and the report print.

    Args:
        arms: outputs by arm name, on the same rows in the same order.
        best_prompt: the prompt arm chosen on dev.

    Raises:
        RunError: no tuned arm was scored.
    """
    candidate = "deployed" if "deployed" in arms else "tuned"
    if candidate not in arms:
        raise RunError("neither the deployed nor the tuned arm was scored", "run: tunesmith evaluate RUN")
    table: list[dict[str, Any]] = []
    for name, outputs in arms.items():
        low, high = stats.wilson(int(sum(row[HEADLINE] for row in outputs)), len(outputs))
        against = None if name == best_prompt else asdict(compare(outputs, arms[best_prompt]))
        table.append({"arm": name, "low": low, "high": high, **summary(outputs), "against": against})
    comparison = compare(arms[candidate], arms[best_prompt])
    decision = decide(comparison, min_gain)
    return {
        "verdict": decision,
        "exit_code": EXIT_CODES[decision],
        "reason": _reason(decision, comparison, candidate, best_prompt, min_gain),
        "candidate": candidate,
        "best_prompt": best_prompt,
        "min_gain": min_gain,
        "n": len(arms[candidate]),
        "comparison": asdict(comparison),
        "arms": table,
    }


def _reason(decision: str, c: Comparison, candidate: str, best_prompt: str, min_gain: float) -> str:
    interval = f"95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}"
    gain = f"{candidate} gains {100 * c.gain:+.1f} points over {best_prompt}, {interval}"
    why = {
        "deploy": f"above zero, and at least the {100 * min_gain:.1f} points asked for",
        "not better": f"a gain of {100 * min_gain:.1f} points is ruled out, and there is none",
        "prompting is enough": f"ahead, but for certain by less than the {100 * min_gain:.1f} points asked for",
        "too little data to tell": f"it can be more or less than the {100 * min_gain:.1f} points asked for",
    }[decision]
    form = "" if candidate == "deployed" else "; the deployed form was not scored"
    return f"{gain}: {why}{form}"
