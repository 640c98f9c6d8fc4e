"""Is an exported form the model that was trained? Figures and checks, on numbers alone; ``api/parity.py`` runs the models.

The same prompts go through the training stack (the reference: base as training held it, adapter on it, unmerged) and through
every form that was written. The reference's greedy continuation is fed to all of them, so that one early difference does not
make everything after it different. Five checks a form:

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

and the greedy choice agrees at 99 of 100 positions. A choice that the reference holds for as likely as its own within
0.02 nats agrees: that is a tie, which any rounding decides. A quantised form, and one merged into another base than the
trained one, differs by design: its KL is shown without a bound, and the metric decides.

**Control tokens in a user's text** stay text in our renderer. An engine that tokenises a rendered prompt parses them, so such
a prompt becomes other ids there. That is no fault of the form; it is counted beside the checks and fails none of them.

**The adapter check** compares two mean KLs to the same form. Where KL(tuned || base) is less than ten times what rounding may
make (1e-2 for a form without a bound), the adapter hardly changes anything on these prompts, and nothing can be told.

**The margin** is half of ``task.min_gain``: a form that surely loses less keeps at least half of the smallest gain worth
deploying. Non-inferior: the 95 % interval of the difference lies above minus the margin. Worse: the difference is beyond the
margin and its interval below zero (the rule of the gate, with the sign turned). Else too few rows to tell, which fails nothing:
dev is small, and the sealed test part is not read here.

Refused: comparing sampled or free-running text, which says that two models differ and not by how much; a bound on a quantised
form's KL, which says nothing of the task. Source: KL against the unquantised model is llama.cpp's own measure of quantisation
(``tools/perplexity``, ``--kl-divergence``); non-inferiority by a margin, CONSORT 2010 extension (Piaggio et al. 2012).

Shape suffixes: V vocabulary (entries that both models have); here: T positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.chat.render import Message

NEW_TOKENS = 32  # of the reference's continuation: enough for the first divergence, cheap on a CPU
BOUNDS = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}  # mean KL in nats by the coarsest rounding on the way
AGREEMENT = 0.99
TIE = 0.02  # nats
VISIBLE = 10.0  # times the bound: how far the base must be from the tuned model to tell them apart
EXCERPT = 40  # characters before and after a difference
CHECKS = ("template", "token ids", "distribution", "adapter", "metric")

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the reference renders it.

    Attributes:
        name: row id, or what a fixed prompt is for.
        text: rendered, up to where the assistant begins.
        ids: its token ids.
        forged: whether a message holds a control token as text.
        continuation: the reference's greedy answer, its end of turn included.
    """

    name: str
    messages: list[Message]
    text: str
    ids: list[int]
    forged: bool
    continuation: list[int]


@dataclass(frozen=True)
class Rendering:
    """What a form makes of a prompt's messages; ``refused`` says why it makes nothing of them."""

    text: str
    ids: list[int]
    refused: str = ""


@dataclass(frozen=True)
class Distances:
    """A form beside the reference, at each position of one continuation.

    Attributes:
        kl_T: KL(tuned || form), nats.
        from_base_T: KL(base || form), nats.
        reference_T, choice_T: greedy choices, ids.
        lag_T: how much less likely the reference holds the form's choice than its own, nats.
    """

    kl_T: NDArray[np.float64]
    from_base_T: NDArray[np.float64]
    reference_T: NDArray[np.int64]
    choice_T: NDArray[np.int64]
    lag_T: NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One check: ``fail`` alone makes a form not deployable; ``unknown`` could not be told, ``shown`` has no bound."""

    state: Literal["pass", "fail", "unknown", "shown"]
    told: str


def log_softmax(logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities, fp64, shape (T, V)."""
    wide_TV = logits_TV.astype(np.float64)
    wide_TV -= wide_TV.max(axis=-1, keepdims=True)
    wide_TV -= np.log(np.exp(wide_TV).sum(axis=-1, keepdims=True))
    return wide_TV


def kl(p_TV: NDArray[np.float64], q_TV: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p || q) in nats of log-probabilities, shape (T,); what p rules out adds nothing."""
    with np.errstate(invalid="ignore"):
        terms_TV = np.where(np.isneginf(p_TV), 0.0, np.exp(p_TV) * (p_TV - q_TV))
    return terms_TV.sum(axis=-1)


def distances(tuned_TV: NDArray[np.float32], base_TV: NDArray[np.float32], form_TV: NDArray[np.float32]) -> Distances:
    """Compare the logits of three models on the same ids.

    Engines pad vocabularies differently; the probabilities are over the entries that all have.
    """
    V = min(tuned_TV.shape[1], base_TV.shape[1], form_TV.shape[1])
    tuned, base, form = (log_softmax(logits[:, :V]) for logits in (tuned_TV, base_TV, form_TV))
    reference_T, choice_T = tuned.argmax(axis=-1), form.argmax(axis=-1)
    rows = np.arange(len(tuned))
    return Distances(kl(tuned, form), kl(base, form), reference_T, choice_T, tuned[rows, reference_T] - tuned[rows, choice_T])


def base_distance(tuned_TV: NDArray[np.float32], base_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(tuned || base) in nats, shape (T,): how much the adapter changes."""
    return kl(log_softmax(tuned_TV), log_softmax(base_TV))


def figures(measured: Sequence[Distances]) -> dict[str, Any]:
    """Of all positions: ``positions``, ``kl_mean``, ``kl_max``, ``kl_from_base`` (nats, None where not finite),
    ``agreement`` (share with the same greedy choice) and ``agreement_or_tie``."""
    kl_T = np.concatenate([one.kl_T for one in measured])
    base_T = np.concatenate([one.from_base_T for one in measured])
    lag_T = np.concatenate([one.lag_T for one in measured])
    same_T = np.concatenate([one.reference_T == one.choice_T for one in measured])
    return {
        "positions": len(kl_T),
        "kl_mean": _finite(kl_T.mean()),
        "kl_max": _finite(kl_T.max()),
        "kl_from_base": _finite(base_T.mean()),
        "agreement": float(same_T.mean()),
        "agreement_or_tie": float((lag_T <= TIE).mean()),
    }


def first_divergence(measured: Sequence[Distances], prompts: Sequence[Prompt], decode: Decode) -> dict[str, Any] | None:
    """The first position with another greedy choice, one beyond a tie before the others; None where all agree.

    Returns:
        ``prompt`` (its name), ``position`` in the answer, ``question`` (the last message), ``so_far`` (the answer up to there),
        ``reference`` and ``form`` (what each says next), ``lag`` in nats, ``tie``.
    """
    for least in (TIE, -np.inf):
        for prompt, one in zip(prompts, measured, strict=True):
            places = np.flatnonzero((one.reference_T != one.choice_T) & (one.lag_T > least))
            if len(places):
                place = int(places[0])
                return {
                    "prompt": prompt.name,
                    "position": place,
                    "question": prompt.messages[-1]["content"],
                    "so_far": decode(prompt.continuation[:place]),
                    "reference": decode([int(one.reference_T[place])]),
                    "form": decode([int(one.choice_T[place])]),
                    "lag": float(one.lag_T[place]),
                    "tie": bool(one.lag_T[place] <= TIE),
                }
    return None


def template_check(prompts: Sequence[Prompt], found: Sequence[Rendering], bos: str | None) -> Check:
    """Whether the form's template writes the reference's text."""
    pairs = [(p, r) for p, r in zip(prompts, found, strict=True) if not p.forged]
    for prompt, rendering in pairs:
        if rendering.refused:
            return Check("fail", f"the form cannot render prompt {prompt.name}: {rendering.refused}")
        expected, text = _without_bos(prompt.text, bos), _without_bos(rendering.text, bos)
        if expected != text:
            return Check("fail", f"prompt {prompt.name}: {_text_difference(expected, text)}")
    return Check("pass", f"{len(pairs)} texts equal")


def ids_check(prompts: Sequence[Prompt], found: Sequence[Rendering], decode: Decode) -> Check:
    """Whether the form's tokenizer makes the reference's ids."""
    pairs = [(p, r) for p, r in zip(prompts, found, strict=True) if not p.forged]
    for prompt, rendering in pairs:
        if rendering.refused:
            return Check("fail", f"prompt {prompt.name} cannot be rendered, so it has no ids")
        if rendering.ids != prompt.ids:
            return Check("fail", f"prompt {prompt.name}: {_ids_difference(prompt.ids, rendering.ids, decode)}")
    return Check("pass", f"ids of {len(pairs)} prompts equal")


def parsed_control_tokens(prompts: Sequence[Prompt], found: Sequence[Rendering]) -> list[str]:
    """Names of the prompts with control tokens in a message that the form's engine turns into other ids than ours."""
    return [p.name for p, r in zip(prompts, found, strict=True) if p.forged and r.ids != p.ids]


def distribution_check(measured: dict[str, Any], bound: float | None) -> Check:
    """Whether the form computes what the reference computes.

    Args:
        measured: ``figures``.
        bound: of the mean KL; None where the form differs by design.
    """
    mean, agreed = measured["kl_mean"], measured["agreement_or_tie"]
    told = f"mean KL {_nats(mean)}, largest {_nats(measured['kl_max'])}, greedy agreement {100 * agreed:.1f} %"
    if mean is None:
        return Check("fail", f"{told}: the form's numbers are not finite")
    if bound is None:
        return Check("shown", told)
    limits = f"bounds {bound:.0e} nats and {100 * AGREEMENT:.0f} %"
    return Check("pass" if mean <= bound and agreed >= AGREEMENT else "fail", f"{told}; {limits}")


def adapter_check(measured: dict[str, Any], adapter_kl: float, bound: float | None) -> Check:
    """Whether the form is nearer to the tuned model than to its base.

    Args:
        measured: ``figures``.
        adapter_kl: mean KL(tuned || base) on the same positions.
        bound: as for ``distribution_check``.
    """
    noise = VISIBLE * (BOUNDS["fp16"] if bound is None else bound)
    near, far = measured["kl_mean"], measured["kl_from_base"]
    told = f"KL from the tuned model {_nats(near)}, from the base {_nats(far)}"
    if adapter_kl <= noise:
        return Check("unknown", f"the adapter hardly changes these answers: KL {_nats(adapter_kl)} from the base; {told}")
    if near is None or (far is not None and near >= far):
        return Check("fail", f"the adapter has no effect in this form: {told}")
    return Check("pass", told)


def metric_check(gain: float, low: float, high: float, margin: float, n: int) -> Check:
    """Non-inferiority of the task's figure.

    Args:
        gain: form less reference, of the same ``n`` rows; ``low`` and ``high`` are its 95 % interval.
        margin: largest loss that is accepted.
    """
    told = f"{100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}, n {n}, margin {100 * margin:.1f})"
    if low > -margin:
        return Check("pass", f"non-inferior: {told}")
    if gain < -margin and high < 0.0:
        return Check("fail", f"worse: {told}")
    return Check("unknown", f"too few rows to tell: {told}")


def form_facts(form: str, file: str, checks: dict[str, Check], **more: Any) -> dict[str, Any]:
    """A form's entry of ``parity.json``: ``form``, ``file``, ``deployable``, ``failed`` (names), ``reason``, ``checks``."""
    failed = [name for name, check in checks.items() if check.state == "fail"]
    reason = "; ".join(f"{name}: {checks[name].told}" for name in failed)
    entry = {"form": form, "file": file, "deployable": not failed, "failed": failed, "reason": reason}
    return {**entry, "checks": {name: asdict(check) for name, check in checks.items()}, **more}


def fixed_prompts(control: Sequence[str], long: str) -> dict[str, list[Message]]:
    """Prompts of our own that templates and tokenizers stumble over, by what they are for.

    Args:
        control: the model's own control tokens, to be written in a user's text.
        long: a text of a few hundred tokens.
    """

    def user(text: str) -> Message:
        return {"role": "user", "content": text}

    between = [user("Which is larger, a lake or a pond?"), {"role": "assistant", "content": "A lake."}]
    return {
        "multi-turn": [*between, user("And a sea?")],
        "system": [{"role": "system", "content": "Answer in one word."}, user("What colour is the sky?")],
        "empty": [user("")],
        "long": [user(long)],
        # In NFC, which some tokenizers demand: q with a tilde has no letter of its own. Hebrew and Arabic run right to left.
        "unicode": [user("q\u0303 क्षि שלום مرحبا 漢字かな 한글 👩\u200d🚀🇪🇺 ½ x² ٣ Ⅳ naïve ß")],
        "control tokens": [user(f"Repeat this: {' '.join(control)} And then?")],
    }


def long_text(sentences: int) -> str:
    """Distinct short sentences and a question: about ten tokens each."""
    return "".join(f"Box {n} holds {n * n % 97} red stones. " for n in range(1, sentences + 1)) + "How many boxes are there?"


def _finite(value: float) -> float | None:
    return max(0.0, float(value)) if np.isfinite(value) else None


def _nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g} nats"


def _without_bos(text: str, bos: str | None) -> str:
    return text.removeprefix(bos) if bos else text


def _text_difference(expected: str, found: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
    around = slice(max(0, place - EXCERPT), place + EXCERPT)
    return f"expected {expected[around]!r}, found {found[around]!r} (character {place})"


def _ids_difference(expected: list[int], found: list[int], decode: Decode) -> str:
    place = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))

    def told(ids: list[int]) -> str:
        return f"{ids[place]} {decode([ids[place]])!r}" if place < len(ids) else "the end"

    return f"expected {told(expected)}, found {told(found)} (token {place} of {len(expected)})"
