"""What the figures say of a form: five checks, and whether it may be deployed.

    template       the form's own template writes the reference's text, but for a leading beginning-of-text token,
                   which llama.cpp takes out of the text and puts back as an id
    token ids      the form's own tokenizer makes the reference's ids of it
    distribution   KL(reference || form) of the next token, and greedy agreement
    adapter        the form is nearer to the tuned model than to the base
    metric         the task's figure on dev rows is not worse than the reference's by the margin

**Bounds.** Where nothing was quantised, the mean KL may be what the coarsest rounding on the way makes, with room:

    fp32   1e-6   products in another order; 1e-10 is usual
    fp16   1e-3   weights rounded once to 16 bits, or llama.cpp's F16: weights and inputs of its products have 11 bits
    bf16   1e-2   inputs of the products have 8 bits: steps 8 times as wide, and KL grows with their square

and the greedy choice agrees at 99 of 100 positions.

**A form that differs by design** (quantised, or merged into another base than the trained one) has a loose bound, beyond which
it is broken whatever it answers: 0.3 nats and 70 in 100. llama.cpp's own table for an 8 B model has the worst of the types
that are written here, Q3_K_M, at 0.10 nats; Q2_K, which is not, at 0.33 to 0.45 nats and 71 in 100. Our largest measured is
0.085 nats and 94 in 100 (270 M weights in Q4_K_M, which failed its task). Within the loose bound the KL says nothing of the
task, so the metric alone can show that such a form is deployable. Where it cannot (too few dev rows, a judge's task), the form
is ``unknown``: not refused, and never called deployable; the deployed arm on the sealed test part decides.

**Control tokens in a user's text** stay text in our renderer. An engine that tokenises a rendered prompt parses them, so such
a prompt becomes other ids there. That is no fault of the form; it is counted beside the checks and fails none of them.

**The adapter check** compares two mean KLs to the same form. Where KL(tuned || base) is less than ten times what rounding may
make (1e-2 for a form that differs by design), the adapter hardly changes anything on these prompts, and nothing can be told.

**The margin** is half of ``task.min_gain``: a form that surely loses less keeps at least half of the smallest gain worth
deploying. Non-inferior: the 95 % interval of the difference lies above minus the margin. Worse: the difference is beyond the
margin and its interval below zero (the rule of the gate, with the sign turned). Else too few rows to tell: dev is small, and
the sealed test part is not read here.

Sources: llama.cpp b10605 ``tools/perplexity/README.md`` (its scoreboard of 8 B); non-inferiority by a margin, CONSORT 2010
extension (Piaggio et al. 2012).
"""

from collections.abc import Mapping, Sequence

from tunesmith.parity.figures import Decode
from tunesmith.parity.prompts import Prompt, Rendering
from tunesmith.rundir.records.parity import Check, Figures, FormState, TaskScore

BOUNDS = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}  # mean KL in nats by the coarsest rounding on the way
AGREEMENT = 0.99
LOOSE_KL, LOOSE_AGREEMENT = 0.3, 0.7  # of a form that differs by design
VISIBLE = 10.0  # times the bound: how far the base must be from the tuned model to tell them apart
EXCERPT = 40  # characters before and after a difference


def bound_of(rounding: str | None, arithmetic: str) -> float | None:
    """The bound of a form's mean KL; None for one that differs by design.

    Args:
        rounding: the form's.
        arithmetic: that models in process compute in.
    """
    if rounding is None:
        return None
    return max(BOUNDS[rounding], BOUNDS[arithmetic])


def template_check(prompts: Sequence[Prompt], renderings: Sequence[Rendering], bos: str | None) -> Check:
    """Whether the form's template writes the reference's text."""
    pairs = [(p, r) for p, r in zip(prompts, renderings, strict=True) if not p.forged]
    for prompt, rendering in pairs:
        if rendering.refused:
            return _failed(f"the form cannot render prompt {prompt.name}: {rendering.refused}")
        expected, text = _without_bos(prompt.text, bos), _without_bos(rendering.text, bos)
        if expected != text:
            return _failed(f"prompt {prompt.name}: {_text_difference(expected, text)}")
    return Check(state="pass", summary=f"{len(pairs)} texts equal")


def ids_check(prompts: Sequence[Prompt], renderings: Sequence[Rendering], decode: Decode) -> Check:
    """Whether the form's tokenizer makes the reference's ids."""
    pairs = [(p, r) for p, r in zip(prompts, renderings, strict=True) if not p.forged]
    for prompt, rendering in pairs:
        if rendering.refused:
            return _failed(f"prompt {prompt.name} cannot be rendered, so it has no ids")
        if rendering.ids != prompt.ids:
            return _failed(f"prompt {prompt.name}: {_ids_difference(prompt.ids, rendering.ids, decode)}")
    return Check(state="pass", summary=f"ids of {len(pairs)} prompts equal")


def parsed_control_tokens(prompts: Sequence[Prompt], renderings: Sequence[Rendering]) -> tuple[str, ...]:
    """Names of the prompts with control tokens in a message that the form's engine turns into other ids than ours."""
    return tuple(p.name for p, r in zip(prompts, renderings, strict=True) if p.forged and r.ids != p.ids)


def distribution_check(figures: Figures, bound: float | None) -> Check:
    """Whether the form computes what the reference computes, or is broken for certain.

    Args:
        bound: of the mean KL; None where the form differs by design, which has the loose bound.
    """
    mean, agreed = figures.kl_mean, figures.agreement_or_tie
    summary = f"mean KL {_nats(mean)}, largest {_nats(figures.kl_max)}, greedy agreement {100 * agreed:.1f} %"
    if mean is None:
        return _failed(f"{summary}: the form's numbers are not finite")
    limit, least = (LOOSE_KL, LOOSE_AGREEMENT) if bound is None else (bound, AGREEMENT)
    limits = f"{'loose bounds' if bound is None else 'bounds'} {limit:.0e} nats and {100 * least:.0f} %"
    if mean > limit or agreed < least:
        return _failed(f"{summary}; {limits}")
    return Check(state="shown", summary=summary) if bound is None else Check(state="pass", summary=f"{summary}; {limits}")


def adapter_check(figures: Figures, adapter_kl: float, bound: float | None) -> Check:
    """Whether the form is nearer to the tuned model than to its base.

    Args:
        adapter_kl: mean KL(tuned || base) on the same positions.
        bound: as for ``distribution_check``.
    """
    noise = VISIBLE * (BOUNDS["fp16"] if bound is None else bound)
    near, far = figures.kl_mean, figures.kl_from_base
    summary = f"KL from the tuned model {_nats(near)}, from the base {_nats(far)}"
    if adapter_kl <= noise:
        slight = f"the adapter hardly changes these answers: KL {_nats(adapter_kl)} from the base; {summary}"
        return Check(state="unknown", summary=slight)
    if near is None or (far is not None and near >= far):
        return _failed(f"the adapter has no effect in this form: {summary}")
    return Check(state="pass", summary=summary)


def metric_check(task: TaskScore, margin: float) -> Check:
    """Non-inferiority of the task's figure.

    Args:
        margin: largest loss that is accepted.
    """
    gain, low, high = task.gain, task.low, task.high
    points = f"{100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}, n {task.n}, margin {100 * margin:.1f})"
    if low > -margin:
        return Check(state="pass", summary=f"non-inferior: {points}")
    if gain < -margin and high < 0.0:
        return _failed(f"worse: {points}")
    return Check(state="unknown", summary=f"too few rows to tell: {points}")


def form_state(checks: Mapping[str, Check], by_design: bool, no_task: str | None) -> tuple[FormState, str]:
    """Whether a form may be deployed, and why not.

    Args:
        by_design: it differs from what was trained by design.
        no_task: why no task was compared; None where one was.
    """
    failures = [f"{name}: {check.summary}" for name, check in checks.items() if check.state == "fail"]
    if failures:
        return "not deployable", "; ".join(failures)
    metric = checks.get("metric")
    if by_design and (metric is None or metric.state != "pass"):
        untold = f"no task was compared ({no_task})" if metric is None else f"metric: {metric.summary}"
        return "unknown", f"it differs from what was trained by design; {untold}"
    return "deployable", ""


def _failed(summary: str) -> Check:
    return Check(state="fail", summary=summary)


def _nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g} nats"


def _without_bos(text: str, bos: str | None) -> str:
    return text.removeprefix(bos) if bos else text


def _text_difference(expected: str, written: str) -> str:
    start = _first_difference(expected, written)
    around = slice(max(0, start - EXCERPT), start + EXCERPT)
    return f"expected {expected[around]!r}, found {written[around]!r} (character {start})"


def _ids_difference(expected: list[int], ids: list[int], decode: Decode) -> str:
    start = _first_difference(expected, ids)

    def token(of: list[int]) -> str:
        return f"{of[start]} {decode([of[start]])!r}" if start < len(of) else "the end"

    return f"expected {token(expected)}, found {token(ids)} (token {start} of {len(expected)})"


def _first_difference(expected: Sequence[object], other: Sequence[object]) -> int:
    shorter = min(len(expected), len(other))
    return next((i for i, (a, b) in enumerate(zip(expected, other, strict=False)) if a != b), shorter)
