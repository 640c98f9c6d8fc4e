"""From the checklist to one of four endings, and from the rows to settings.

Decided in this order, the first that holds:

    prompt is enough       the best measured prompt is good enough for certain (``task.min_score``), or leaves less than
                           ``min_gain`` to be gained, and for certain no more than 5 points beyond it
    use retrieval          retrieval brings at least ``min_gain``, and half of what the best prompt lacks
    collect N more rows    too few rows to learn from, or no split of them could show ``min_gain``
    tune                   anything else; on another machine where no base fits this one

Cheap endings come first: a prompt costs a minute, a search an afternoon, rows a week, and a tuned model its upkeep. The
price of calls never decides alone: a verdict to deploy needs a gain in quality, so a shorter prompt of equal quality is
reported, and left to the reader.

Settings are few, because few matter: every linear layer gets an adapter and alpha is 32 (Schulman et al. 2025, "LoRA
Without Regret", whose best learning rate hardly depends on rank). Epochs, tokens a step and the rate are what ``auto`` comes to
in the section ``train`` (``recipe/derive.py``). The rank follows the rows as the epochs do (the bands of ``tunesmith check``),
and doubles until the adapter holds the answers, at 2 bits a weight (Allen-Zhu and Li 2024, arXiv 2404.05405) against 1 bit a
supervised token.
"""

import math
from collections.abc import Sequence

from tunesmith.advise.checklist import (
    HARDWARE,
    PROMPT,
    RESOLUTION,
    RETRIEVAL,
    ROWS,
    TOO_FEW,
    checklist,
    learnable,
    payback,
    rows_in_all,
    test_fraction,
)
from tunesmith.formatting import percent
from tunesmith.memory.room import HEADROOM
from tunesmith.recipe import Lora, Train
from tunesmith.recipe.derive import ALPHA, WIDTH, band, derive, width_of_update
from tunesmith.rundir.records.advice import Advice, Ending, Facts, Settings

EXIT_CODES: dict[Ending, int] = {"tune": 0, "prompt is enough": 21, "use retrieval": 22, "collect more rows": 23}
ELSEWHERE = 24  # tune, but this machine has too little memory
BITS_A_WEIGHT, BITS_A_TOKEN, LARGEST_RANK = 2.0, 1.0, 256


def decide(facts: Facts, hours: float | None) -> Advice:
    """The advice that follows from the facts.

    Args:
        hours: of one training run, None where unknown; see ``memory.training_hours``.
    """
    checks = checklist(facts, hours)
    state = {check.check: check.state for check in checks}
    best, retrieval = facts.best_prompt(), facts.best_retrieval()

    def advice(
        ending: Ending,
        reason: str,
        by: Sequence[str],
        arm: str | None = None,
        more_rows: int | None = None,
        settings: Settings | None = None,
    ) -> Advice:
        return Advice(
            ending=ending,
            exit_code=EXIT_CODES[ending] if settings is None or settings.fits else ELSEWHERE,
            reason=reason,
            decided_by=tuple(by),
            unknown=tuple(check.check for check in checks if check.state == "unknown"),
            provisional=best is None,
            arm=arm,
            more_rows=more_rows,
            settings=settings,
            checks=tuple(checks),
            hours=hours,
            facts=facts,
        )

    fit, searched = facts.prompt, facts.retrieval
    if best is not None and fit is not None and state[PROMPT] == "stop":
        bar = facts.metric.min_score
        why = "less than min_gain is left to be gained"
        if bar is not None and fit.low >= bar:
            why = f"at least {percent(fit.low)} for certain, and task.min_score asks {percent(bar)}"
        reason = f"{best.detail} is the best prompt; on dev rows that did not choose it {percent(fit.score)} of 100: {why}"
        return advice("prompt is enough", reason + _saving(facts, hours), [PROMPT], arm=best.name)
    if retrieval is not None and fit is not None and searched is not None and state[RETRIEVAL] == "stop":
        reason = f"retrieval scores {percent(searched.score)} of 100 on dev where the best prompt scores {percent(fit.score)}"
        return advice("use retrieval", f"{reason}: what the model lacks can be looked up", [RETRIEVAL], arm=retrieval.name)
    blocking = [check for check in (ROWS, RESOLUTION) if state[check] == "stop"]
    if blocking:
        more = _more_rows(facts, blocking)
        reason = f"{more:,} more rows like these"
        reason += ", before anything is learned from them" if ROWS in blocking else ""
        reason += f", before a gain of {percent(facts.metric.planned)} points can be shown" if RESOLUTION in blocking else ""
        return advice("collect more rows", reason, blocking, more_rows=more)
    settings = choose_settings(facts, state[RESOLUTION] == "unknown" and facts.metric.min_gain > 0.0)
    where = f"base {settings.base}, r {settings.r}, {settings.num_train_epochs} epochs"
    if not settings.fits:
        reason = f"{where}; on another machine: {facts.machine.name} has too little memory for any base"
        return advice("tune", reason, [HARDWARE], settings=settings)
    reason = where
    if fit is not None and state[PROMPT] == "pass":
        reason += f"; the best prompt leaves {percent(1.0 - fit.score)} points to be gained"
    return advice("tune", reason, [check.check for check in checks if check.state == "pass"], settings=settings)


def choose_settings(facts: Facts, split_again: bool) -> Settings:
    """All settings, by the rules at the top; ``split_again`` asks for another ``data.test_fraction``."""
    rows = learnable(facts)
    r, _ = band(rows)
    tokens = facts.rows.supervised
    why = {"lora.r": f"{rows:,} distinct train rows"}
    per_rank = facts.memory.adapter_per_rank
    while per_rank and r < LARGEST_RANK and r * per_rank * BITS_A_WEIGHT < tokens * BITS_A_TOKEN:
        r *= 2
        why["lora.r"] = f"about {tokens:,.0f} supervised tokens, at 1 bit each, in weights of 2 bits each"
    why["lora.alpha"] = "32 whatever the rank"
    base, fits, why["base"] = _base(facts)
    fraction = test_fraction(facts) if split_again else None
    if fraction is not None:
        why["data.test_fraction"] = f"{facts.metric.test_needed:,} test rows show {percent(facts.metric.planned)} points"
    hidden = facts.memory.hidden
    lora = Lora(r=r, alpha=ALPHA, use_rslora=facts.use_rslora)
    trained = max(1, facts.rows.train)
    derived = derive(
        Train(),
        rows=trained,
        tokens=max(trained, facts.rows.tokens),
        hidden=hidden or WIDTH,
        update=width_of_update(lora),
        supervised=facts.rows.supervised,
    )
    known = {"num_train_epochs": True, "tokens_per_step": facts.rows.counted, "learning_rate": hidden}
    why |= {f"train.{key}": derived.why[key] for key, is_known in known.items() if is_known}
    return Settings(
        base=base,
        r=r,
        alpha=ALPHA,
        num_train_epochs=derived.settings.num_train_epochs,
        tokens_per_step=derived.settings.tokens_per_step if facts.rows.counted else None,
        learning_rate=derived.settings.learning_rate if hidden else None,
        test_fraction=fraction,
        fits=fits,
        why=why,
    )


def _base(facts: Facts) -> tuple[str, bool, str]:
    """The first base, in the recipe's order, that fits with room to spare; else one that just fits; else the smallest."""
    memory, machine = facts.memory, facts.machine
    if not memory.by_base or machine.memory is None:
        return memory.base, True, "the recipe's; whether it fits is unknown"
    for room in (HEADROOM[machine.kind], 1.0):
        for base, size in memory.by_base.items():
            if room * size <= machine.memory:
                room_line = f"roughly {size / 1e9:.1f} GB of {machine.memory / 1e9:.1f} GB"
                return base, True, room_line if base == memory.base else f"{room_line}; {memory.base} does not fit"
    smallest = min(memory.by_base, key=lambda base: memory.by_base[base])
    return smallest, False, f"the smallest, roughly {memory.by_base[smallest] / 1e9:.1f} GB"


def _more_rows(facts: Facts, blocking: list[str]) -> int:
    """Rows to collect so that every blocking check passes."""
    rows = facts.rows
    wanted = [1]
    if RESOLUTION in blocking:
        wanted.append(rows_in_all(facts) - rows.rows)
    if ROWS in blocking:
        share = rows.train / rows.rows if rows.rows else 1.0
        wanted.append(math.ceil((TOO_FEW - learnable(facts)) / max(share, 0.01)))
    return max(wanted)


def _saving(facts: Facts, hours: float | None) -> str:
    even = payback(facts, hours)
    if even is None or even.a_month <= 0.0:
        return ""
    return f"; a tuned model of equal quality would save {even.a_month:,.2f} a month in prompt tokens"
