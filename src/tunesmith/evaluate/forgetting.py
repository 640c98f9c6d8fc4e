"""Has the tuned model forgotten anything? Cheap probes of what it was never trained on, compared with its base.

A benchmark of a hundred right-or-wrong items cannot see a loss of less than nine points. What a model says about every
token is continuous and far less noisy, so three probes of that kind always run (a minute for 135 million weights on two
cores), and benchmarks are an extra (``evaluate/lm_eval.py``):

    bits per byte        on passages of English, code, German and Spanish, or the recipe's own
    answer probability   of the right answer among four, on a hundred short questions
    KL(base || tuned)    on everyday requests in the chat format, token by token along the base's own greedy answer

Base and tuned are one model in memory, adapters off and on (``models/swap.py: without_adapters``); every item is paired.

**Verdicts** are of non-inferiority (``evaluate/stats.py``): no regression, regression, too little data to tell. The margin,
0.02 unless the recipe says otherwise, is two points of probability. Of bits per byte it is a share, 2 % of the base's:
loss falls with the 0.076th power of the number of weights (Kaplan et al. 2020, arXiv 2001.08361, equation 1.1), so 2 % is
what a model with 23 % fewer weights would lose. The first two probes and every benchmark have a verdict each; the run has a
regression where any has, and none where all are free of it.

**A veto is corrected for the number of probes**, freedom from it is not: for "no regression" all have to pass, each at 5 %,
but any one of K probes vetoes, so a loss must be certain at 5 % / K (Bonferroni; Holm's steps would name more probes and
veto no more runs). Ten benchmarks of a hundred right-or-wrong items veto a model that lost nothing 1 to 5 times in 100, where
uncorrected they did 39 times. The cost is power: 10 points lost in one of the ten are vetoed 27 times in 100 (uncorrected 65),
20 points 90 times, 10 points in all of them 96 times (``tests/evaluate/test_forgetting_veto.py``, by exact enumeration).

**KL has no margin**, because a model that answers as it was taught to has to differ. It is shown with its interval and an
alarm: from 0.5 nats a token on, half of the probability can lie on other tokens (Pinsker: total variation is at most
``sqrt(KL / 2)``). Accuracy and log-probability of the right answers are shown beside their probability and decide nothing:
the first is too coarse for a verdict on a hundred questions, the second is ruled by the few least likely answers.

The KL is taken from last hidden states (``engines/score.py``): base and tuned share a frozen head, so no distribution is
kept but where a third model is compared with the base. Refused: KL over random text (nobody asks for it), and over sampled
answers (the sample is noise).

**What is deployed is another model than what was trained**: quantised, computed by another engine. Where a form is deployed the
same items are asked of it too (``evaluate/forgetting_form.py``), and the verdict is of that.

Shape suffixes: N rows (positions of all probes), D hidden size, V vocabulary; here: P passages, Q questions, A answers of each,
R requests.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.chat.render import Renderer
from tunesmith.chat.vocabulary import AFTER, MIDDLE, START
from tunesmith.engines.engine import Pair, Scored
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.score import Scorer
from tunesmith.errors import DataError
from tunesmith.evaluate import resample, stats
from tunesmith.evaluate.interval import Interval
from tunesmith.evaluate.probes import Probes
from tunesmith.layers.experts import Adapted
from tunesmith.messages import Message
from tunesmith.models.fuse import fuse_on_gpu
from tunesmith.models.swap import without_adapters
from tunesmith.rundir.records.evidence import Change, Forgetting, NonInferiority, Probe, ProbeFigure, ProbePart

ALARM = 0.5  # nats a token
CONTINUATION = 16  # tokens of the base's answer along which distributions are compared
LARGEST = 3  # items named as those that changed most
SENTENCES: dict[NonInferiority, str] = {
    "no regression": "no probe lost more than {margin}",
    "regression": "lost more than {margin}: {names}",
    "too little data to tell": "may have lost more than {margin}: {names}",
}


@dataclass(frozen=True)
class Side:
    """What one side (base or tuned) says of the probes.

    Attributes:
        bits_P: bits per byte of each passage.
        logprob_QA: of each answer given its question, summed over tokens, nats; the right answer is the first.
    """

    bits_P: NDArray[np.float64]
    logprob_QA: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Two sides on the same token ids.

    Attributes:
        base, tuned: what each says of passages and questions.
        kl_N: KL(base || tuned) at every position of ``rows``, nats, fp64.
        pairs: of passages and questions.
        rows: everyday requests and the base's answers.
        log_p_NV: the base's log-probabilities there, fp32, on the CPU; None where they were not to be kept.
    """

    base: Side
    tuned: Side
    kl_N: Tensor
    pairs: list[Pair]
    rows: list[Pair]
    log_p_NV: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The items of a probe on both sides.

    Attributes:
        name, label, unit, parts, largest: as of ``Probe``.
        base_N, tuned_N: of each item, in the probe's own unit.
        differences_N: tuned less base in the unit of the margin, worse is negative.
        margin: largest loss that does not matter.
        binary: whether items are right or wrong.
    """

    name: str
    label: str
    base_N: NDArray[np.float64]
    tuned_N: NDArray[np.float64]
    differences_N: NDArray[np.float64]
    margin: float
    unit: str
    binary: bool = False
    parts: tuple[ProbePart, ...] = ()
    largest: tuple[Change, ...] = ()


def measure(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    renderer: Renderer,
    probes: Probes,
    batch_size: int,
    advance: Callable[[int], None],
    keep: bool = False,
) -> Measured:
    """All probes on both sides of an adapted model.

    Args:
        layers: what ``add_lora`` returned, with the trained weights.
        batch_size: rows that are answered together.
        advance: called with the number of finished steps, of ``STEPS`` in all.
        keep: the base's distributions, for another model to be compared with: 0.1 GB at 49 k tokens.

    Raises:
        DataError: a passage is longer than the model's context.
    """
    fuse_on_gpu(model)
    scorer = Scorer(model.eval())
    pairs = _pairs(model, renderer, probes)
    with without_adapters(layers):
        base = side_of(scorer.continuation_logprobs(pairs), probes)
        advance(1)
        rows = continuations(model, renderer, [prompt for _, prompt in probes.prompts], batch_size)
        base_ND = scorer.last_states(rows)
        advance(1)
    tuned = side_of(scorer.continuation_logprobs(pairs), probes)
    advance(1)
    kl_N = scorer.kl_of_states(base_ND, scorer.last_states(rows))
    advance(1)
    log_p_NV = scorer.log_distributions(base_ND) if keep else None
    return Measured(base=base, tuned=tuned, kl_N=kl_N, pairs=pairs, rows=rows, log_p_NV=log_p_NV)


def measure_apart(
    open_base: Callable[[], PreTrainedModel],
    open_tuned: Callable[[], PreTrainedModel],
    renderer: Renderer,
    probes: Probes,
    batch_size: int,
    advance: Callable[[int], None],
) -> Measured:
    """All probes on a base and on a whole tuned model, one after the other in memory. Both read the base's token ids.

    Their heads may differ, so the distributions of the base are kept, not its hidden states: 0.1 GB at 49 k tokens. Where one
    has more tokens than the other, KL is over those of both.

    Args:
        renderer: of the base.
        batch_size, advance: as of ``measure``.

    Raises:
        DataError: a passage is longer than a model's context.
    """
    scorer = Scorer(open_base().eval())
    pairs = _pairs(scorer.model, renderer, probes)
    base = side_of(scorer.continuation_logprobs(pairs), probes)
    advance(1)
    rows = continuations(scorer.model, renderer, [prompt for _, prompt in probes.prompts], batch_size)
    log_p_NV = scorer.log_distributions(scorer.last_states(rows))
    advance(1)
    del scorer
    scorer = Scorer(open_tuned().eval())
    _pairs(scorer.model, renderer, probes)  # its context may be shorter
    tuned = side_of(scorer.continuation_logprobs(pairs), probes)
    advance(1)
    kl_N = kl_between(log_p_NV, scorer.log_distributions(scorer.last_states(rows)))
    advance(1)
    return Measured(base=base, tuned=tuned, kl_N=kl_N, pairs=pairs, rows=rows, log_p_NV=log_p_NV)


STEPS = 4


def kl_between(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) of each row in nats, fp64, over the tokens that both have."""
    both = min(log_p_NV.shape[1], log_q_NV.shape[1])
    log_p_NV, log_q_NV = log_p_NV[:, :both], log_q_NV[:, :both]
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1, dtype=torch.float64)


def compared(measured: Measured, probes: Probes, margin: float) -> tuple[list[Paired], list[ProbeFigure]]:
    """Probes, and figures without a margin, of two sides.

    Args:
        margin: largest loss that does not matter, above 0.
    """
    base, tuned, rows = measured.base, measured.tuned, measured.rows
    kl_R = np.array([float(kl.mean()) for kl in measured.kl_N.split([len(continuation) for _, continuation in rows])])
    decisive = [_bits(base.bits_P, tuned.bits_P, probes, margin), _answers(base, tuned, probes, margin)]
    return decisive, [_kl(kl_R, [name for name, _ in probes.prompts]), *_coarse(base, tuned)]


def conclude(paired: list[Paired], figures: list[ProbeFigure], margin: float) -> Forgetting:
    """The verdict over all probes, those of benchmarks among them."""
    probes = tuple(_judged(items, len(paired)) for items in paired)
    verdicts = {probe.verdict for probe in probes}
    verdict: NonInferiority = "too little data to tell"
    if "regression" in verdicts:
        verdict = "regression"
    elif verdicts == {"no regression"}:
        verdict = "no regression"
    names = ", ".join(probe.label for probe in probes if probe.verdict == verdict)
    alarms = [figure.label for figure in figures if figure.alarmed]
    reason = SENTENCES[verdict].format(margin=f"{100 * margin:g} %", names=names)
    reason += f"; alarm: {', '.join(alarms)}" if alarms else ""
    return Forgetting(verdict=verdict, reason=reason, margin=margin, probes=probes, figures=tuple(figures))


def _judged(paired: Paired, probes: int) -> Probe:
    """A probe with its verdict, as one of so many that can veto."""
    decision = stats.non_inferior(paired.differences_N, paired.margin, binary=paired.binary, vetoes=probes)
    return Probe(
        name=paired.name,
        label=paired.label,
        n=len(paired.differences_N),
        base=float(paired.base_N.mean()),
        tuned=float(paired.tuned_N.mean()),
        difference=decision.mean,
        bound=decision.bound,
        margin=paired.margin,
        unit=paired.unit,
        verdict=decision.verdict,
        parts=paired.parts,
        largest=paired.largest,
    )


def continuations(model: PreTrainedModel, renderer: Renderer, prompts: list[str], batch_size: int) -> list[Pair]:
    """Token ids of each request and of the model's own greedy answer, whose end of turn is put where it was cut.

    The answer's text is encoded again, so that both sides read the same tokens whichever engine wrote it.
    """
    conversations: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    engine = InProcessEngine(model, renderer, batch_size)
    answers = engine.generate(conversations, CONTINUATION, lambda _: None)
    engine.close()
    texts = renderer.vocabulary.encode([(answer.text, AFTER) for answer in answers])
    end = renderer.stop_ids[0]
    return [(renderer.prompt_ids(messages), [*ids, end]) for messages, ids in zip(conversations, texts, strict=True)]


def _pairs(model: PreTrainedModel, renderer: Renderer, probes: Probes) -> list[Pair]:
    """Token ids of context and of what is scored: all passages, then every answer of every question.

    A text begins with the token that the tokenizer begins it with, or with none; its first token is then only read. A token
    that begins chat turns would not do: after it a tuned model expects its own turns, and each passage pays for that once.
    """
    begin = renderer.text_begin
    encode = renderer.vocabulary.encode
    texts = encode([(passage.text, START) for passage in probes.passages])
    pairs: list[Pair] = [(begin, ids) if begin else (ids[:1], ids[1:]) for ids in texts]
    contexts = encode([(question.context, START) for question in probes.questions])
    for question, context in zip(probes.questions, contexts, strict=True):
        pairs += [([*begin, *context], ids) for ids in encode([(f" {answer}", MIDDLE) for answer in question.answers])]
    limit = int(model.config.max_position_embeddings)
    for passage, ids in zip(probes.passages, texts, strict=True):
        if len(ids) + 1 > limit:
            raise DataError(
                f"evaluate.forgetting.texts: {passage.id} is {len(ids)} tokens long, the model's context is {limit}",
                "part long passages by blank lines",
            )
    return pairs


def side_of(scores: Sequence[Scored], probes: Probes) -> Side:
    """What a model says, of the scores of all passages and then of every answer to every question."""
    logprobs = np.array([scored.logprob for scored in scores])
    passages = len(probes.passages)
    bytes_P = np.array([len(passage.text.encode()) for passage in probes.passages])
    answers = len(probes.questions[0].answers)
    return Side(-logprobs[:passages] / np.log(2.0) / bytes_P, logprobs[passages:].reshape(-1, answers))


def _bits(base_P: NDArray[np.float64], tuned_P: NDArray[np.float64], probes: Probes, margin: float) -> Paired:
    lost_P = (base_P - tuned_P) / base_P.mean()
    parts: list[ProbePart] = []
    for kind in dict.fromkeys(passage.kind for passage in probes.passages):
        of_kind_P = np.array([passage.kind == kind for passage in probes.passages])
        base, tuned = float(base_P[of_kind_P].mean()), float(tuned_P[of_kind_P].mean())
        parts.append(ProbePart(name=kind, n=int(of_kind_P.sum()), base=base, tuned=tuned, difference=(base - tuned) / base))
    return Paired(
        name="bits_per_byte",
        label="bits per byte of general text",
        base_N=base_P,
        tuned_N=tuned_P,
        differences_N=lost_P,
        margin=margin,
        unit="share of the base's bits",
        parts=tuple(parts),
        largest=_largest([passage.id for passage in probes.passages], lost_P),
    )


def _answers(base: Side, tuned: Side, probes: Probes, margin: float) -> Paired:
    """Probability of the right answer among the four."""
    base_Q, tuned_Q = (np.exp(log_softmax(side.logprob_QA, axis=1)[:, 0]) for side in (base, tuned))
    return Paired(
        name="answer_probability",
        label="probability of the right answer of four",
        base_N=base_Q,
        tuned_N=tuned_Q,
        differences_N=tuned_Q - base_Q,
        margin=margin,
        unit="probability",
        largest=_largest([question.id for question in probes.questions], tuned_Q - base_Q),
    )


def _kl(kl_R: NDArray[np.float64], names: list[str]) -> ProbeFigure:
    low, high = _interval(kl_R)
    value = float(kl_R.mean())
    return ProbeFigure(
        name="kl",
        label="KL(base || tuned) on everyday requests",
        n=len(kl_R),
        value=value,
        low=low,
        high=high,
        unit="nats a token",
        alarm=ALARM,
        alarmed=value >= ALARM,
        largest=_largest(names, -kl_R),
    )


def _coarse(base: Side, tuned: Side) -> list[ProbeFigure]:
    """Accuracy (the likeliest answer is the right one) and log-probability of the right answers."""
    right = [(side.logprob_QA.argmax(1) == 0).astype(np.float64) for side in (base, tuned)]
    gold = [side.logprob_QA[:, 0] for side in (base, tuned)]
    named = (
        ("accuracy", "accuracy on the questions", "share", right),
        ("answer_logprob", "log-probability of the right answer", "nats an answer", gold),
    )
    figures: list[ProbeFigure] = []
    for name, label, unit, (base_Q, tuned_Q) in named:
        low, high = _interval(tuned_Q - base_Q)
        figures.append(
            ProbeFigure(
                name=name,
                label=label,
                n=len(base_Q),
                value=float((tuned_Q - base_Q).mean()),
                low=low,
                high=high,
                unit=unit,
                base=float(base_Q.mean()),
                tuned=float(tuned_Q.mean()),
            )
        )
    return figures


def _interval(values_N: NDArray[np.float64]) -> Interval:
    """95 % bootstrap interval of a mean."""
    return stats.mean_interval(values_N, resample.units(None, len(values_N)))


def _largest(names: list[str], differences_N: NDArray[np.float64]) -> tuple[Change, ...]:
    """The items that lost most, worst first."""
    worst = np.argsort(differences_N, kind="stable")[:LARGEST]
    return tuple(Change(id=names[i], difference=float(differences_N[i])) for i in worst)
