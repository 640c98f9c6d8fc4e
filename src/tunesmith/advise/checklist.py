"""The checklist: eight questions, each answered pass, stop or unknown, with the numbers it was answered from.

``stop`` says that the answer speaks against tuning as the recipe stands, ``unknown`` that a number is missing or lies
between the two bounds. What follows from the answers together is ``decide.py``'s business. The bounds are written here,
each with where it comes from; docs/explanation/deciding.md says the same to the user.

What a prompt leaves is read from the cross-fitted figure (``evaluate/cross_fit.py``), never from that of the winner on the rows
that chose it: at a true 90 of 100 the best of seventeen says "less than 5 are left" 60 times in 100 on 64 rows. And the figure
alone is one of few rows, so ``stop`` asks for a bound beside it (``SLACK``).

Refused: a weighted score. It hides which answer decided, and its weights would be invented.
"""

import math

from tunesmith.advise.price import PAYBACK_DAYS, BreakEven, break_even, by_tokens
from tunesmith.formatting import gb, percent, points
from tunesmith.memory.room import HEADROOM
from tunesmith.rundir.records.advice import Check, Facts, MemoryFacts, State

PROMPT, RETRIEVAL, ROWS, VARIETY = "room above the prompt", "knowledge or format", "enough rows", "varied rows"
METRIC, RESOLUTION, PRICE, HARDWARE = "metric", "gain can be shown", "calls pay for it", "hardware fits"

TOO_FEW = 50  # train rows: hosted services suggest to start with 50 to 100
FEW = 200  # train rows: the lowest band of `tunesmith check`
SLACK = 0.05  # points beyond min_gain of which it must be sure that a prompt does not leave them (``CrossFit.bound``)
CLOSED = 0.5  # share of the missing points that retrieval must bring to be the answer: half, a choice of ours
ROUNDING = 1e-9  # 1.0 - 0.9 is below 0.1 in floating point
CONFLICTS = 0.05  # share of rows whose prompt has another answer elsewhere
DISTINCT_4, COMPRESSION, SAMPLE = 0.3, 10.0, 200  # as `tunesmith check` calls prompts alike


def checklist(facts: Facts, hours: float | None) -> list[Check]:
    """All eight rows, in the order in which they are read.

    Args:
        hours: of the training, as ``memory.training_hours`` estimates them; None where the model's sizes are unknown.
    """
    return [
        _prompt(facts),
        _retrieval(facts),
        _rows(facts),
        _variety(facts),
        _metric(facts),
        _resolution(facts),
        _price(facts, hours),
        _hardware(facts),
    ]


def learnable(facts: Facts) -> int:
    """Distinct rows (or prompts) of the train part."""
    rows = facts.rows
    return round(rows.effective * rows.train / rows.rows) if rows.rows else 0


def rows_in_all(facts: Facts) -> int:
    """Rows of a data set whose test part shows the planned gain and whose train part has 200 rows, at the same share of dev."""
    rows = facts.rows
    dev_share = rows.dev / rows.rows if rows.rows else 0.0
    return math.ceil((facts.metric.test_needed + FEW) / (1.0 - dev_share))


def payback(facts: Facts, hours: float | None) -> BreakEven | None:
    """The break-even, or None where a price, the traffic or the time is unknown."""
    price = facts.price
    if price.calls_per_month is None or price.per_million is None or price.per_hour is None or hours is None:
        return None
    a_call = by_tokens(max(0.0, price.tokens_saved), price.per_million, price.per_million_cached)
    return break_even(price.calls_per_month, a_call, price.per_hour * hours, price.hosting)


def _check(check: str, state: State, evidence: str, hint: str = "") -> Check:
    return Check(check=check, state=state, evidence=evidence, hint=hint)


def _prompt(facts: Facts) -> Check:
    best = facts.best_prompt()
    if best is None:
        return _check(PROMPT, "unknown", "no prompt was asked", "leave out --quick: the prompts are asked on dev rows")
    if facts.metric.calibrated is not None:
        hint = "run the gate: tunesmith run RECIPE" if facts.metric.calibrated else "calibrate the judge first"
        return _check(PROMPT, "unknown", "a judge compares prompts with each other, it does not say what is left", hint)
    prompts, fit = len([arm for arm in facts.arms if not arm.retrieves]), facts.prompt
    evidence = f"best of {prompts} on dev: {best.detail} with {percent(best.score)} of 100 (n={best.n})"
    if fit is None:
        hint = "raise data.dev_fraction: a prompt is chosen on one half of dev and scored on the other"
        return _check(PROMPT, "unknown", f"{evidence}, by the rows that chose it", hint)
    room, wanted = 1.0 - fit.score, facts.metric.min_gain
    evidence += (
        f"; chosen on one half and scored on the other {percent(fit.score)} ({percent(fit.low)}-{percent(fit.high)}); "
        f"{percent(room)} are left, min_gain asks {percent(wanted)}"
    )
    bar = facts.metric.min_score
    if bar is not None and fit.low >= bar:
        return _check(PROMPT, "stop", f"{evidence}; for certain at least the {percent(bar)} of min_score", "use this prompt")
    if bar is not None:
        evidence += f"; min_score asks {percent(bar)}, which is not certain of it"
    if (room < wanted - ROUNDING or room == 0.0) and fit.bound < 1.0 - wanted - SLACK:
        evidence += f"; {percent(1.0 - fit.bound)} could be"
        return _check(PROMPT, "unknown", evidence, "raise data.dev_fraction: these rows are too few to be sure of it")
    if room < wanted - ROUNDING or room == 0.0:
        return _check(PROMPT, "stop", evidence, "use this prompt; lower task.min_gain only if less is worth a model")
    return _check(PROMPT, "pass", evidence)


def _retrieval(facts: Facts) -> Check:
    if facts.best_retrieval() is None or facts.best_prompt() is None:
        hint = "add retrieval to evaluate.arms, leave out --quick; data.documents names what is searched"
        return _check(RETRIEVAL, "unknown", "retrieval was not asked", hint)
    if facts.metric.calibrated is not None:
        hint = "compare retrieval and tuned_retrieval in the gate"
        return _check(RETRIEVAL, "unknown", "a judge does not say how much of what is missing retrieval brings", hint)
    best, retrieval = facts.prompt, facts.retrieval
    if best is None or retrieval is None:
        return _check(RETRIEVAL, "unknown", "there is no second dev row to score on", "raise data.dev_fraction")
    gain, room = retrieval.score - best.score, 1.0 - best.score
    closed = gain / room if room else 0.0
    source = "documents" if facts.documents else "train rows"
    evidence = (
        f"retrieval from {source} gets {percent(retrieval.score)} of 100 (n={retrieval.n}), "
        f"{points(gain)} over the best prompt: {percent(max(0.0, closed), 0)} % of what was missing"
    )
    if gain <= 0.0 or gain < facts.metric.min_gain - ROUNDING:
        return _check(RETRIEVAL, "pass", f"{evidence}; what is missing is form or skill")
    if closed >= CLOSED - ROUNDING:
        return _check(RETRIEVAL, "stop", f"{evidence}; it can be looked up", "keep the passages in the prompt")
    return _check(RETRIEVAL, "unknown", f"{evidence}; some of it can be looked up", "add tuned_retrieval to evaluate.arms")


def _rows(facts: Facts) -> Check:
    rows, distinct = facts.rows, learnable(facts)
    evidence = f"{distinct:,} distinct to train on, of {rows.rows:,} rows ({rows.distinct:,} distinct"
    evidence += f", {rows.prompts:,} prompts)" if rows.prompts is not None else ")"
    if distinct < TOO_FEW:
        return _check(ROWS, "stop", evidence, f"below {TOO_FEW} rows are better used as examples in the prompt")
    if distinct < FEW:
        return _check(ROWS, "unknown", evidence, f"{TOO_FEW} to {FEW} rows teach a fixed format at best; collect more")
    return _check(ROWS, "pass", evidence)


def _variety(facts: Facts) -> Check:
    rows = facts.rows
    share = rows.conflicting / rows.rows if rows.rows else 0.0
    parts = [f"{rows.conflicting:,} rows ({percent(share)} %) contradict another"]
    alike = False
    if rows.distinct_4 is not None and rows.compression is not None:
        parts.append(f"prompts: distinct-4 {rows.distinct_4:.2f}, compression {rows.compression:.1f}")
        alike = rows.sampled >= SAMPLE and (rows.distinct_4 < DISTINCT_4 or rows.compression > COMPRESSION)
    evidence = "; ".join(parts)
    if share > CONFLICTS:
        return _check(VARIETY, "unknown", evidence, "one prompt, two answers: keep the right one, or expect neither")
    if alike:
        return _check(VARIETY, "unknown", evidence, "the prompts repeat each other's words: is it one template, filled in?")
    return _check(VARIETY, "pass", evidence)


def _metric(facts: Facts) -> Check:
    metric = facts.metric
    if metric.calibrated is False:
        hint = "compare it with 100 labels of people; below kappa 0.6 it decides nothing"
        return _check(METRIC, "unknown", f"{metric.name}: {metric.judge}", hint)
    if metric.calibrated:
        return _check(METRIC, "pass", f"{metric.name}: {metric.judge}")
    return _check(METRIC, "pass", f"{metric.name}: {metric.tried:,} references score 1 against themselves")


def _resolution(facts: Facts) -> Check:
    metric, rows = facts.metric, facts.rows
    evidence = f"{rows.test:,} test rows deploy a true gain of {percent(metric.detectable)} points four times in five"
    changing = max(metric.discordance, metric.detectable)  # a gain needs as many rows that change
    evidence += f" if {percent(changing, 0)} % of the rows change"
    if metric.min_gain == 0.0:
        return _check(RESOLUTION, "unknown", f"{evidence}; min_gain is 0", "say in task.min_gain how much is worth a model")
    evidence += f"; {percent(metric.planned)}, twice min_gain, need {metric.test_needed:,}"
    if metric.detectable <= metric.planned:
        return _check(RESOLUTION, "pass", evidence)
    lacking = rows_in_all(facts) - rows.rows
    if lacking <= 0:
        fraction = test_fraction(facts)
        return _check(RESOLUTION, "unknown", evidence, f"data.test_fraction: {fraction:.2f} is enough, in a new run directory")
    return _check(RESOLUTION, "stop", evidence, f"{lacking:,} more rows, or a larger task.min_gain")


def test_fraction(facts: Facts) -> float:
    """The ``data.test_fraction``, to two places upwards, whose test part shows the planned gain."""
    return math.ceil(100.0 * facts.metric.test_needed / max(1, facts.rows.rows)) / 100.0


def _price(facts: Facts, hours: float | None) -> Check:
    price, even = facts.price, payback(facts, hours)
    saved = f"saves {price.tokens_saved:,.0f} prompt tokens a call" + ("" if price.counted else " (at 4 characters a token)")
    if even is None:
        missing = [
            name
            for name, value in (
                ("advise.calls_per_month", price.calls_per_month),
                ("advise.price_per_million_prompt_tokens", price.per_million),
                ("evaluate.price_per_hour", price.per_hour),
            )
            if value is None
        ]
        hint = f"set {', '.join(missing)}" if missing else "the model's sizes are not at hand, so its training has no price"
        return _check(PRICE, "unknown", saved, hint)
    saved += "" if price.per_million_cached is None else ", priced as cached ones"
    hosting = f"after {price.hosting:,.2f} for hosting" if price.hosting else "hosting not counted"
    evidence = f"{saved}, {even.a_month:,.2f} a month ({hosting}, answers of today's length)"
    evidence += f"; training costs about {even.cost:,.2f} ({hours:,.1f} h)"
    if math.isinf(even.days):
        return _check(PRICE, "stop", f"{evidence}; never pays back", "tune for quality, or not at all")
    evidence += f"; even after {math.ceil(even.requests):,} calls, {even.days:,.1f} days"
    if even.days > PAYBACK_DAYS:
        return _check(PRICE, "stop", evidence, f"longer than {PAYBACK_DAYS:.0f} days: tune for quality, or not at all")
    return _check(PRICE, "pass", evidence)


def _to_spend(memory: MemoryFacts, base: str) -> str:
    """What the memory that a base in NF4 leaves over can be spent on; empty for nothing."""
    if base != "nf4" or not memory.spare:
        return ""
    return (
        f"base_budget: auto gives linear layers of the base 8 or 16 bits, in up to {gb(memory.spare)} that are left over; "
        "docs/explanation/bits.md says how far that was measured (as KL to the 16-bit base, not as a task's score)"
    )


def _hardware(facts: Facts) -> Check:
    memory, machine = facts.memory, facts.machine
    if not memory.by_base:
        return _check(HARDWARE, "unknown", memory.why_not, "leave out --quick: the model is fetched and its sizes read")
    sizes = ", ".join(f"{base} {size / 1e9:.1f} GB" for base, size in memory.by_base.items())
    if machine.memory is None:
        return _check(HARDWARE, "unknown", f"roughly {sizes}; the GPU was not asked", "leave out --quick")
    evidence = f"roughly {sizes}; {machine.name} has {machine.memory / 1e9:.1f} GB"
    if plan := memory.plans.get(memory.base):
        evidence += f"; by the plan of training: {plan}"
    room = HEADROOM[machine.kind]
    if room * memory.by_base[memory.base] <= machine.memory:
        return _check(HARDWARE, "pass", evidence, _to_spend(memory, memory.base))
    if min(memory.by_base.values()) > machine.memory:
        return _check(
            HARDWARE,
            "stop",
            evidence,
            "a smaller model or train.max_length, train.recompute: layer, or a larger machine",
        )
    roomy = next((base for base, size in memory.by_base.items() if room * size <= machine.memory), None)
    if roomy is not None:
        hint = f"base: {roomy} fits with room to spare"
        return _check(HARDWARE, "pass", evidence, "; ".join(filter(None, (hint, _to_spend(memory, roomy)))))
    return _check(HARDWARE, "unknown", evidence, "the estimate can be half of the truth: train.recompute: layer takes less")
