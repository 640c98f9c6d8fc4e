"""How far a form is from what was trained: distances between next-token distributions, on numbers alone.

The reference's greedy continuation is fed to every form, so that one early difference does not make everything after it
different. A choice that the reference holds for as likely as its own within 0.02 nats agrees: that is a tie, which any rounding
decides.

Refused: comparing sampled or free-running text, which says that two models differ and not by how much. Source: KL against the
unquantised model is llama.cpp's own measure of quantisation (``tools/perplexity``, ``--kl-divergence``).

Shape suffixes: V vocabulary (entries that both models have); here: T positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.parity.prompts import Prompt
from tunesmith.rundir.records.parity import Divergence, Figures

TIE = 0.02  # nats

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, kw_only=True)
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
    return Distances(
        kl_T=kl(tuned, form),
        from_base_T=kl(base, form),
        reference_T=reference_T,
        choice_T=choice_T,
        lag_T=tuned[rows, reference_T] - tuned[rows, choice_T],
    )


def base_distance(tuned_TV: NDArray[np.float32], base_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(tuned || base) in nats, shape (T,): how much the adapter changes."""
    return kl(log_softmax(tuned_TV), log_softmax(base_TV))


def figures(measured: Sequence[Distances]) -> Figures:
    """Of all positions."""
    kl_T = np.concatenate([one.kl_T for one in measured])
    base_T = np.concatenate([one.from_base_T for one in measured])
    lag_T = np.concatenate([one.lag_T for one in measured])
    same_T = np.concatenate([one.reference_T == one.choice_T for one in measured])
    return Figures(
        positions=len(kl_T),
        kl_mean=_finite(kl_T.mean()),
        kl_max=_finite(kl_T.max()),
        kl_from_base=_finite(base_T.mean()),
        agreement=float(same_T.mean()),
        agreement_or_tie=float((lag_T <= TIE).mean()),
    )


def first_divergence(measured: Sequence[Distances], prompts: Sequence[Prompt], decode: Decode) -> Divergence | None:
    """The first position with another greedy choice, one beyond a tie before the others; None where all agree."""
    for least in (TIE, -np.inf):
        for prompt, one in zip(prompts, measured, strict=True):
            positions = np.flatnonzero((one.reference_T != one.choice_T) & (one.lag_T > least))
            if len(positions):
                first = int(positions[0])
                return Divergence(
                    prompt=prompt.name,
                    position=first,
                    question=prompt.messages[-1]["content"],
                    so_far=decode(prompt.continuation[:first]),
                    reference=decode([int(one.reference_T[first])]),
                    form=decode([int(one.choice_T[first])]),
                    lag=float(one.lag_T[first]),
                    tie=bool(one.lag_T[first] <= TIE),
                )
    return None


def _finite(value: float) -> float | None:
    return max(0.0, float(value)) if np.isfinite(value) else None
