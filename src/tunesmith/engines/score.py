"""How likely a given continuation is: log-probabilities on token ids, with common beginnings and the head computed once.

A regression suite asks for thousands of log-probabilities and generates nothing. Stock scoring pads a batch of whole texts,
runs every one from its first token, and takes a log-softmax over the vocabulary at every position. Here

* what all contexts have in common (an instruction, demonstrations) runs once for the whole call and is kept as keys and
  values (``engines/shared_prefix.py``);
* pairs with the same context, as the choices of one question, run it once: they are spans that see it
  (``kernels/attention.py``); so does what all those choices begin with (a blank, the brace and first key of a JSON object);
* texts lie one after another without padding, in packs that are dealt out to the cores (``engines/deal.py``);
* the head sees only the positions that predict a continuation, ``CHUNK`` at a time, and a position that predicts the first
  token of four choices once.

The numbers are those of the stock model, summed in fp64; ``benchmarks/score.py`` compares both with lm-evaluation-harness.

What remains is the products of the model itself on tokens that differ, more than four fifths of the time on a CPU and at
its full speed; short answers to a common question gain a factor of three over whole texts, long answers to a short question
hardly more than what the head and the padding cost.

Families that change the logits after the head other than by soft-capping would get other numbers, so that is looked at before
the first pair of a model: the stock model and our path must agree on a few tokens, or it is an error.

Refused: a tree of all beginnings (on the questions of ``benchmarks/score.py`` 3 to 11 % fewer tokens, and attention over
scattered keys), and log-softmax over all positions (200 KB a position at V = 49,152).

Source of the loss: ``kernels/cross_entropy.py``. Pairs as in lm-evaluation-harness: one forward pass predicts token t from
all before it; ``greedy`` is its ``is_greedy``.

Shape suffixes: T tokens, N rows (tokens of all continuations), C rows of one chunk (positions), D hidden size, V vocabulary, H
query heads, G key/value heads, K head dimension; here: P tokens of the header, U positions whose hidden states are wanted, M
target tokens, X targets of a chunk.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.engines.deal import Widths, dealt_out, shared
from tunesmith.engines.engine import Pair, Scored
from tunesmith.engines.shared_prefix import MIN_SHARED, Prefix, common_beginning, compute_prefix
from tunesmith.errors import ModelError, RunError
from tunesmith.kernels.attention import Reach, ScoreParams, Span, attention_forward, gpu_kernel
from tunesmith.kernels.cross_entropy import CHUNK, cross_entropy_rows_
from tunesmith.kernels.upload import upload
from tunesmith.models.attention import attention_behind, packed_attention
from tunesmith.models.load import attention, decoder

SCORED = "tunesmith_scored"
CAPACITY = 512  # tokens of one pack on a CPU, where packs are dealt out; a core is busy with a few hundred
GPU_CAPACITY = 2048
SCORE = struct.Struct("<d?")  # log-probability, and whether it is the greedy choice


class Scorer:
    """A model that continuations are scored with.

    Its head is compared with what the stock model does to its logits once, before the first pair (one pass, 0.1 s at 135 M
    weights).

    Args:
        model: in evaluation mode; its adapter may be switched off and on between calls.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model

    @cached_property
    def _head(self) -> "_Head":
        return _compared_head(self.model)

    def continuation_logprobs(self, pairs: Sequence[Pair], advance: Callable[[int], None] = lambda _: None) -> list[Scored]:
        """Log-probability of every continuation given its context, in order.

        Args:
            pairs: token ids of context (at least one: a beginning-of-text token where there is nothing else) and continuation.
            advance: called with the number of pairs done.

        Raises:
            RunError: a pair exceeds the model's context.
            ModelError: the model does something to its logits that is not known here.
        """
        head = self._head

        def score(pack: _Pack, hidden_UD: Tensor) -> bytes:
            scores = _scored(head, pack, hidden_UD)
            return b"".join(SCORE.pack(float(logprob_N.sum()), bool(greedy_N.all())) for logprob_N, greedy_N in scores)

        scores: dict[int, tuple[float, bool]] = {}
        for pack, result in _over_packs(self.model, pairs, score, advance):
            scores |= zip(pack.rows, SCORE.iter_unpack(result), strict=True)
        return [
            Scored(scores[pair][0], len(context), len(continuation), scores[pair][1])
            for pair, (context, continuation) in enumerate(pairs)
        ]

    @torch.inference_mode()
    def last_states(self, pairs: Sequence[Pair]) -> Tensor:
        """Last hidden states that predict the continuations' tokens, shape (N, D), pair by pair.

        Raises:
            RunError: a pair exceeds the model's context.
            ModelError: the model does something to its logits that is not known here.
        """
        ends = list(accumulate((len(continuation) for _, continuation in pairs), initial=0))
        states_ND = shared((ends[-1], self._head.width), self._head.dtype, self.model.device)

        def keep(pack: _Pack, hidden_UD: Tensor) -> bytes:
            for pair, rows in pack.rows.items():
                states_ND[ends[pair] : ends[pair + 1]] = hidden_UD[rows]
            return b""

        _over_packs(self.model, pairs, keep, lambda _: None)
        return states_ND

    @torch.inference_mode()
    def log_distributions(self, states_ND: Tensor) -> Tensor:
        """Log-probabilities of every next token, fp32, shape (N, V), on the CPU: what two models are compared by.

        Args:
            states_ND: what ``last_states`` gave.

        Raises:
            ModelError: the model does something to its logits that is not known here.
        """
        chunks = states_ND.to(self.model.device).split(CHUNK)
        return torch.cat([torch.log_softmax(self._head(chunk_CD).float(), -1).cpu() for chunk_CD in chunks])

    @torch.inference_mode()
    def kl_of_states(self, base_ND: Tensor, tuned_ND: Tensor) -> Tensor:
        """KL(base || tuned) of next-token distributions, in nats, fp64, shape (N,), on the CPU.

        The model's head makes both distributions: adapters leave the head alone.

        Args:
            base_ND, tuned_ND: what ``last_states`` gave for the same pairs without and with the adapter.

        Raises:
            ModelError: the model does something to its logits that is not known here.
        """
        head, widths = self._head, Widths(self.model)
        kl_N = shared((len(base_ND),), torch.float64, torch.device("cpu"))
        chunks = list(zip(base_ND.split(CHUNK), tuned_ND.split(CHUNK), kl_N.split(CHUNK), strict=True))

        def compare(item: int) -> bytes:
            base_CD, tuned_CD, kl_C = chunks[item]
            log_p_CV, log_q_CV = (torch.log_softmax(head(x).float(), -1) for x in (base_CD, tuned_CD))
            kl_C.copy_((log_p_CV.exp() * (log_p_CV - log_q_CV)).sum(-1, dtype=torch.float64))
            return b""

        costs = [2 * widths.flop(0, len(kl_C)) for _, _, kl_C in chunks]
        with dealt_out(self.model, costs, 6 * CHUNK * widths.vocabulary * 4) as run:
            run(compare, lambda _: None)
        return kl_N


@dataclass
class _Group:
    """Pairs with one context.

    Attributes:
        context: without the header.
        members: pair and continuation.
    """

    context: list[int]
    members: list[tuple[int, list[int]]]

    @cached_property
    def stem(self) -> list[int]:
        """What all continuations begin with, a token of each left, which predicts nothing or is predicted after it."""
        continuations = [continuation for _, continuation in self.members]
        return continuations[0][: common_beginning(continuations)] if all(continuations) else []

    @property
    def tokens(self) -> int:
        """That are computed: the last token of a continuation predicts nothing."""
        own = sum(max(0, len(continuation) - 1 - len(self.stem)) for _, continuation in self.members)
        return len(self.context) + len(self.stem) + own


@dataclass
class _Pack:
    """Groups that run together.

    Attributes:
        ids, positions: of T tokens; the header is counted in positions.
        borders: where each group lies.
        spans: of each group, counted from the beginning of the header.
        looked: positions in the pack that predict something, U of them.
        rows: of each pair, where in ``looked`` its tokens are predicted.
        targets: those tokens.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    borders: list[tuple[int, int]] = field(default_factory=list)
    spans: list[list[Span]] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)
    rows: dict[int, list[int]] = field(default_factory=dict)
    targets: dict[int, list[int]] = field(default_factory=dict)

    def add(self, group: _Group, header: int) -> None:
        """Lay a group out behind what is there."""
        start, stem = len(self.ids), group.stem
        known = header + len(group.context) + len(stem)
        self.ids += group.context + stem
        self.positions += range(header, known)
        first = len(self.looked)
        self.looked += range(len(self.ids) - len(stem) - 1, len(self.ids))
        common = range(first, len(self.looked))
        spans = [Span(header, known, 0, header)]
        end = known
        for pair, continuation in group.members:
            rest = continuation[len(stem) : -1]
            here = len(self.ids)
            if rest:
                spans.append(Span(end, end + len(rest), 0, known))
                end += len(rest)
            self.rows[pair] = [*common, *range(len(self.looked), len(self.looked) + len(rest))][: len(continuation)]
            self.targets[pair] = continuation
            self.looked += range(here, here + len(rest))
            self.ids += rest
            self.positions += range(known, known + len(rest))
        self.spans.append(spans)
        self.borders.append((start, len(self.ids)))


def _scored(logits_of: "_Head", pack: _Pack, hidden_UD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Log-probability (fp64) and whether it is the greedy choice, of every token of a pack's continuations, on the CPU."""
    counts = [len(rows) for rows in pack.rows.values()]
    row_M = torch.tensor([row for rows in pack.rows.values() for row in rows], dtype=torch.int64)
    target_M = torch.tensor([token for continuation in pack.targets.values() for token in continuation], dtype=torch.int64)
    sorted_M, order_M = torch.sort(row_M, stable=True)  # here, so that no chunk asks a GPU which tokens are its own
    device, chunks = hidden_UD.device, range(0, len(hidden_UD), CHUNK)
    ends = torch.searchsorted(sorted_M, torch.tensor([start + CHUNK for start in chunks])).tolist()
    rows_M, targets_M = upload(sorted_M, device), upload(target_M[order_M], device)
    found: list[tuple[Tensor, Tensor]] = []
    for start, begin, end in zip(chunks, [0, *ends], ends, strict=False):
        if begin < end:
            logits_CV = logits_of(hidden_UD[start : start + CHUNK], capped=False)
            found.append(_of_targets_(logits_CV, rows_M[begin:end] - start, targets_M[begin:end], logits_of.softcap))
    logprob_M, greedy_M = torch.empty(len(row_M), dtype=torch.float64), torch.empty(len(row_M), dtype=torch.bool)
    if found:
        logprobs, greedy = zip(*found, strict=True)
        both_2M = torch.stack([torch.cat(logprobs), torch.cat(greedy).double()]).cpu()  # one copy, that is one wait
        logprob_M[order_M], greedy_M[order_M] = both_2M[0], both_2M[1].bool()
    return list(zip(logprob_M.split(counts), greedy_M.split(counts), strict=True))


def _of_targets_(logits_CV: Tensor, row_X: Tensor, target_X: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Log-probability (fp64) of some entries, and whether each is its row's greedy choice; overwrites ``logits_CV``."""
    picked_X = logits_CV[row_X, target_X]
    greedy_X = _greedy(logits_CV, row_X, target_X, picked_X)
    any_C = torch.zeros(len(logits_CV), dtype=torch.int64, device=logits_CV.device)
    any_C[row_X] = target_X
    first_C = logits_CV.gather(1, any_C[:, None])[:, 0]
    loss_C, _ = cross_entropy_rows_(logits_CV, any_C, softcap)
    picked_X, first_C = (capped_logits(x.to(loss_C.dtype), softcap).double() for x in (picked_X, first_C))
    return picked_X - (loss_C.double() + first_C)[row_X], greedy_X


def _greedy(logits_CV: Tensor, row_X: Tensor, target_X: Tensor, picked_X: Tensor) -> Tensor:
    """Whether each target is the first of its row's largest, bool; bf16 logits tie often."""
    if logits_CV.is_cuda:  # every row, and nothing that the host would wait for
        return logits_CV.argmax(-1)[row_X] == target_X
    greedy_X = picked_X == logits_CV.amax(-1)[row_X]
    if greedy_X.any():
        greedy_X[greedy_X.clone()] = logits_CV[row_X[greedy_X]].argmax(-1) == target_X[greedy_X]
    return greedy_X


@torch.inference_mode()
def _over_packs(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    work: Callable[["_Pack", Tensor], bytes],
    advance: Callable[[int], None],
) -> list[tuple[_Pack, bytes]]:
    """Every pack, and what ``work`` makes of it and of its last hidden states at the positions looked at, shape (U, D).

    Args:
        work: in whichever process has the pack.
        advance: called with the number of pairs done.
    """
    _check(model, pairs)
    contexts = [list(context) for context, _ in pairs]
    header = _header(contexts)
    packs = _packs(pairs, header, CAPACITY if model.device.type == "cpu" else GPU_CAPACITY)
    widths = Widths(model)
    costs = [widths.flop(len(pack.ids), len(pack.looked)) for pack in packs]
    needed = (
        widths.reading_bytes(header + max((len(pack.ids) for pack in packs), default=0)) + 3 * CHUNK * widths.vocabulary * 4
    )
    with dealt_out(model, costs, needed) as run:
        prefix = compute_prefix(model, contexts[0][:header]) if header else {}

        def compute(item: int) -> bytes:
            pack = packs[item]
            ids_1T, position_1T = (upload(torch.tensor([x]), model.device) for x in (pack.ids, pack.positions))
            with attention(model, SCORED):
                hidden_TD = decoder(model)(
                    input_ids=ids_1T,
                    position_ids=position_1T,
                    groups=list(zip(pack.borders, pack.spans, strict=True)),
                    prefix=prefix,
                    use_cache=False,
                ).last_hidden_state[0]
            return work(pack, hidden_TD[upload(torch.tensor(pack.looked), model.device)])

        results = run(compute, lambda item: advance(len(packs[item].rows)))
    return list(zip(packs, results, strict=True))


def _packs(pairs: Sequence[Pair], header: int, capacity: int) -> list[_Pack]:
    """Pairs grouped by context, groups filled into packs, the longest first, so that packs are of few sizes."""
    groups: dict[Any, _Group] = {}
    for number, (context, continuation) in enumerate(pairs):
        rest = list(context[header:])
        key = tuple(rest) if len(rest) >= MIN_SHARED else number
        groups.setdefault(key, _Group(rest, [])).members.append((number, list(continuation)))
    packs: list[_Pack] = []
    for group in sorted(groups.values(), key=lambda group: -group.tokens):
        if not packs or len(packs[-1].ids) + group.tokens > capacity:
            packs.append(_Pack())
        packs[-1].add(group, header)
    return packs


def _header(contexts: list[list[int]]) -> int:
    """Tokens that all contexts begin with, one of each left; 0 where sharing them does not pay."""
    if all(context == contexts[0] for context in contexts):
        return 0  # one group, which holds its context once anyway
    length = common_beginning(contexts)
    return length if length >= MIN_SHARED else 0


def _check(model: PreTrainedModel, pairs: Sequence[Pair]) -> None:
    limit = model.config.max_position_embeddings
    for number, (context, continuation) in enumerate(pairs):
        assert context, f"pair {number} has no context: give a beginning-of-text token"
        if len(context) + len(continuation) > limit + 1:
            raise RunError(
                f"pair {number}: {len(context)} tokens of context and {len(continuation)} of continuation exceed the model's "
                f"{limit}",
                "shorten the context",
            )


class _Head:
    """From last hidden states to logits.

    Attributes:
        dtype, width: of the hidden states.
        softcap: of the logits; None where the model has none.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype):
        head = model.get_output_embeddings()
        assert head is not None
        self._head, self.dtype, self.width = head, dtype, head.weight.shape[1]
        self.softcap = vars(model.config).get("final_logit_softcapping")

    def __call__(self, hidden_CD: Tensor, capped: bool = True) -> Tensor:
        """Shape (C, D) to (C, V)."""
        logits_CV = self._head(hidden_CD.contiguous())
        return capped_logits(logits_CV, self.softcap) if capped else logits_CV


def _compared_head(model: PreTrainedModel) -> _Head:
    """The head, once it is known that the stock model does nothing else to its logits."""
    ids_1T = torch.arange(4, device=model.device)[None]
    with torch.inference_mode(), attention(model, "eager"):
        kept: list[Tensor] = []
        handle = decoder(model).register_forward_hook(lambda _, __, out: kept.append(out.last_hidden_state[0]))
        try:  # a mask that is given is not looked for in the positions, which the host would wait for
            stock_TV = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), use_cache=False).logits[0].float()
        finally:
            handle.remove()
        (states_TD,) = kept
        head = _Head(model, states_TD.dtype)
        ours_TV = head(states_TD).float()
    off = float((stock_TV - ours_TV).abs().max() / stock_TV.abs().max().clamp(min=1e-6))
    if off > 0.02:  # rounding of bf16 is 0.004; a factor or an offset is far more
        raise ModelError(
            f"model type {model.config.model_type}: its logits differ from those of its head by {100 * off:.0f} %",
            "log-probabilities of this architecture are not supported",
        )
    return head


def capped_logits(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits as a model with a soft cap has them; None for one without."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def scored_attention(
    module: nn.Module,
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    groups: list[tuple[tuple[int, int], list[Span]]],
    prefix: Prefix,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of groups of spans that all see one header.

    Args:
        groups: where each lies in the pack, and its spans, counted from the beginning of the header.
        prefix: keys and values of the header by layer; empty where there is none.

    Returns:
        Output of shape (1, T, H, K), and None in the place of the attention weights.
    """
    assert attention_mask is None
    if not prefix:
        spans = [Span(*(at + start for at in span)) for (start, _), of_group in groups for span in of_group]
        options = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        return packed_attention(module, query_1HTK, key_1GTK, value_1GTK, None, spans=spans, **options)
    scoring = ScoreParams(scaling, sliding_window, softcap, s_aux)
    if gpu_kernel(query_1HTK, scoring) is not None:
        common = prefix[module.layer_idx]  # type: ignore[index]
        reaches = [_reach(span, start, common[0].shape[1]) for (start, _), spans in groups for span in spans]
        return attention_behind(common, query_1HTK, key_1GTK, value_1GTK, reaches, scoring), None
    q_THK, k_TGK, v_TGK = (x[0].transpose(0, 1) for x in (query_1HTK, key_1GTK, value_1GTK))
    header_k_PGK, header_v_PGK = (x.transpose(0, 1) for x in prefix[module.layer_idx])  # type: ignore[index]
    header = len(header_k_PGK)
    nothing_PHK = q_THK.new_zeros(header, *q_THK.shape[1:])  # no span asks for the header's own output
    out_THK = torch.empty_like(q_THK)
    for (start, end), spans in groups:
        q = torch.cat([nothing_PHK, q_THK[start:end]])
        k, v = torch.cat([header_k_PGK, k_TGK[start:end]]), torch.cat([header_v_PGK, v_TGK[start:end]])
        out_THK[start:end] = attention_forward(q, k, v, spans, scoring)[0][header:]
    return out_THK[None], None


def _reach(span: Span, start: int, header: int) -> Reach:
    """What a span of a group sees, where keys are those of the header and then the pack's.

    Args:
        span: counted from the beginning of the header.
        start: where the group begins in the pack.
        header: its tokens.
    """
    context = ((start + header, start + span.prefix_end),) if span.prefix_end > header else ()
    keys = ((0, header), *context, (start + span.start, start + span.end))
    return Reach(start + span.start - header, start + span.end - header, keys)


AttentionInterface.register(SCORED, scored_attention)
