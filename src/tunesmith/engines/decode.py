"""Greedy decoding on token ids: prompts read in packs without padding, then one token a row and step.

*Reading.* Prompts of 60 to 700 tokens in one rectangle are mostly padding. Here the prompts of a batch lie one after another,
as documents do in training, in packs of at most ``PACK`` tokens, and each writes its keys and values to its place in the
cache. The head sees the last position of each.

*Writing.* Rows leave the batch when they end, so one rambling answer does not keep thirty finished ones computing. What all
prompts begin with is computed once for all batches (``engines/shared_prefix.py``). ``model.generate`` does neither; it is the
oracle in the tests.

Rows are taken shortest first, so a batch holds rows of like lengths, and the bins of its cache (``engines/row_cache.py``) too.
Batches are about equal: a last one of four rows takes a third of the time of a full one. On a CPU they are dealt out to
processes of one thread (``engines/deal.py``), so a call of some rows is several batches, whatever ``batch_size`` allows; which
rows share a batch follows from rows and recipe alone.

Memory beside the weights, in elements: the cache of a batch, ``2 G K`` a layer for every slot (``engines/row_cache.py``), and
one layer's activations of one pack, ``PACK * (4 D + 3 F + 3 (H + G) K + 512 H)`` with F the width of the MLP, whatever the
batch: 0.1 GB for a model of 135 M weights in fp32, where 64 rows of 700 tokens in one rectangle took 8.6 GB. A prompt of
more than ``PACK`` tokens is a pack of its own and counts with its own length.

Shape suffixes: N rows (prompts), T tokens, B rows of a batch that are not done, D hidden size, V vocabulary; here: R rows of a
pack.
"""

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.engines.deal import Widths, dealt_out, shared
from tunesmith.engines.row_cache import GROWTH, RowCache
from tunesmith.engines.shared_prefix import DECODE, MIN_SHARED, PREFILL, Prefix, common_beginning, compute_prefix
from tunesmith.kernels.attention import Span
from tunesmith.models.load import attention, decoder

# Tokens read at once. Products of a few hundred rows run as fast as a core can; more only cost memory there, and a GPU is
# busy with two thousand.
PACK = 2048
SECONDS, ROW = struct.Struct("<d"), struct.Struct("<q?")  # of a batch; new tokens, and whether each is the likeliest


class Choice(Protocol):
    """What has a say in the choice of the next token of every row of a batch."""

    def change(self, logits_BV: Tensor) -> Tensor:
        """The logits whose largest is taken."""
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """Move every row on by the token that it chose."""
        ...

    def keep_rows(self, keep: Sequence[int]) -> None:
        """Forget all rows but ``keep``."""
        ...


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        ids: new tokens, the one that ended it included.
        seconds: its share of the wall time of all, by what its batch took.
        likeliest: whether each token is the model's likeliest, whatever had a say in the choice.
    """

    ids: list[int]
    seconds: float
    likeliest: bool = True


@dataclass(frozen=True)
class StopRule:
    """When an answer ends.

    Attributes:
        max_new_tokens: at least 1.
        stop_ids: tokens after which it ends.
        is_complete: whether it ends with these new tokens, looked at after each; None to let it go on.
    """

    max_new_tokens: int
    stop_ids: Sequence[int]
    is_complete: Callable[[list[int]], bool] | None = None

    def ended(self, ids: list[int]) -> bool:
        """Whether an answer of these new tokens is whole."""
        return ids[-1] in self.stop_ids or (self.is_complete is not None and self.is_complete(ids))


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    stop_rule: StopRule,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
    constrain: Callable[[Sequence[int]], Choice] | None = None,
) -> list[Generation]:
    """The likeliest next token, again and again, of every prompt, in order.

    Args:
        prompts: token ids, at least one each.
        batch_size: rows decoded together, up to an eighth more where that saves a batch.
        advance: called with the number of answers done.
        constrain: makes what has a say in the choice, a grammar or the dice of a sample, for a batch of prompts by their
            numbers; None for the likeliest token.
    """
    started = time.perf_counter()
    shared_tokens = common_beginning(list(prompts))
    shared_tokens = shared_tokens if shared_tokens >= MIN_SHARED else 0
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    batches = _batches(order, batch_size, to_deal_out=model.device.type == "cpu")
    rests = [[len(prompts[number]) - shared_tokens for number in batch] for batch in batches]
    widths, most = Widths(model), stop_rule.max_new_tokens
    costs = [widths.flop(sum(rest) + len(rest) * most, len(rest) * most) for rest in rests]
    needed = max(_batch_bytes(widths, rest, most, constrain is not None) for rest in rests)
    ids_NT = shared((len(prompts), most), torch.int32, torch.device("cpu"))
    with dealt_out(model, costs, needed) as run:
        prefix = compute_prefix(model, prompts[0][:shared_tokens]) if shared_tokens else {}

        def answer(item: int) -> bytes:
            begun, batch = time.perf_counter(), batches[item]
            suffixes = [prompts[number][shared_tokens:] for number in batch]
            choice = None if constrain is None else constrain(batch)
            new_ids, changed = _batch(model, suffixes, prefix, shared_tokens, stop_rule, choice)
            for number, ids in zip(batch, new_ids, strict=True):
                ids_NT[number, : len(ids)] = torch.tensor(ids)
            rows = b"".join(ROW.pack(len(ids), row not in changed) for row, ids in enumerate(new_ids))
            return SECONDS.pack(time.perf_counter() - begun) + rows

        results = run(answer, lambda item: advance(len(batches[item])))
    return _generations(batches, results, ids_NT, time.perf_counter() - started)


def _generations(batches: list[list[int]], results: list[bytes], ids_NT: Tensor, seconds: float) -> list[Generation]:
    """Answers in the order of the prompts; all of them together took ``seconds``, shared out by what each batch took."""
    spent = [SECONDS.unpack_from(result)[0] for result in results]
    answers: dict[int, Generation] = {}
    for batch, result, own in zip(batches, results, spent, strict=True):
        rows = ROW.iter_unpack(result[SECONDS.size :])
        each = own / len(batch) * seconds / sum(spent)
        for number, (length, likeliest) in zip(batch, rows, strict=True):
            answers[number] = Generation(ids_NT[number, :length].tolist(), each, likeliest)
    return [answers[number] for number in range(len(answers))]


def _batches(order: list[int], batch_size: int, to_deal_out: bool) -> list[list[int]]:
    """Rows in order, in batches of equal sizes but for one row, as few as batches of ``batch_size`` and an eighth make.

    Where they are dealt out there are at least half as many as the root of the rows: 2 of 8 rows, 4 of 16, 8 of 32. Fewer rows
    read the weights as often for less (16 took a fifth more time a row than 32, and 8 half as much again), and fewer batches
    leave a process waiting for another's last.
    """
    count = -(-len(order) // (batch_size + batch_size // 8))
    if to_deal_out:
        count = max(count, math.isqrt(len(order) // 4))
    borders = [number * len(order) // count for number in range(count + 1)]
    return [order[start:end] for start, end in pairwise(borders)]


def _batch_bytes(widths: Widths, lengths: Sequence[int], new_tokens: int, is_constrained: bool) -> int:
    """What answering a batch takes beside the model: its cache, a pack as it is read, its logits."""
    slots = len(lengths) * (max(lengths) + new_tokens + GROWTH)
    cache = slots * 2 * widths.key * (widths.layers + 1) * widths.nbytes
    of_logit = 2 * widths.nbytes + (24 if is_constrained else 0)  # fp64 logits, draws and their sum
    return cache + widths.reading_bytes(max(PACK, max(lengths))) + len(lengths) * widths.vocabulary * of_logit


def _batch(
    model: PreTrainedModel,
    suffixes: list[list[int]],
    prefix: Prefix,
    shared: int,
    stop_rule: StopRule,
    constraint: Choice | None,
) -> tuple[list[list[int]], set[int]]:
    """New token ids of each row, and the rows in which the constraint changed a choice.

    Args:
        suffixes: what follows the shared beginning, shortest first.
    """
    cache = RowCache([len(ids) for ids in suffixes], stop_rule.max_new_tokens, model.device)
    logits_BV = _prefill(model, suffixes, cache, prefix, shared)
    new_ids: list[list[int]] = [[] for _ in suffixes]
    changed: set[int] = set()
    rows = list(range(len(suffixes)))
    with attention(model, DECODE):
        while True:
            likeliest_B = next_B = logits_BV.argmax(-1)
            if constraint is not None:
                next_B = constraint.change(logits_BV).argmax(-1)
                changed |= {rows[place] for place in (next_B != likeliest_B).nonzero()[:, 0].tolist()}
            chosen = next_B.tolist()
            if constraint is not None:
                constraint.accept(chosen)
            for row, token in zip(rows, chosen, strict=True):
                new_ids[row].append(token)
            keep = [place for place, row in enumerate(rows) if not stop_rule.ended(new_ids[row])]
            if not keep or len(new_ids[rows[keep[0]]]) == stop_rule.max_new_tokens:
                return new_ids, changed
            if len(keep) < len(rows):
                keep = cache.keep_rows(keep)
                rows = [rows[place] for place in keep]
                next_B = next_B[torch.tensor(keep, device=next_B.device)]
                if constraint is not None:
                    constraint.keep_rows(keep)
            step = cache.take_step()
            hidden_B1D = decoder(model)(
                input_ids=next_B[:, None],
                position_ids=step.place_B[:, None] + shared,
                past_key_values=cache,
                use_cache=True,
                prefix=prefix,
                step=step,
            ).last_hidden_state
            logits_BV = _logits(model, hidden_B1D[:, 0])


def _prefill(model: PreTrainedModel, suffixes: list[list[int]], cache: RowCache, prefix: Prefix, shared: int) -> Tensor:
    """Read the prompts; logits of the token after each, shape (B, V)."""
    last: list[Tensor] = []
    with attention(model, PREFILL):
        for rows in _packs([len(ids) for ids in suffixes]):
            spans: list[Span] = []
            for row in rows:
                start = spans[-1].end if spans else 0
                spans.append(Span(start, start + len(suffixes[row]), start, start))
            cache.take_pack([(row, span.start, span.end) for row, span in zip(rows, spans, strict=True)])
            ids = [token for row in rows for token in suffixes[row]]
            positions = [shared + place for row in rows for place in range(len(suffixes[row]))]
            hidden_1TD = decoder(model)(
                input_ids=torch.tensor([ids], device=model.device),
                position_ids=torch.tensor([positions], device=model.device),
                past_key_values=cache,
                use_cache=True,
                prefix=prefix,
                spans=spans,
            ).last_hidden_state
            ends_R = torch.tensor([span.end - 1 for span in spans], device=model.device)
            last.append(hidden_1TD[0, ends_R])
    return _logits(model, torch.cat(last))


def _packs(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of rows, in order, as many to a pack as it holds."""
    packs: list[list[int]] = []
    tokens = 0
    for row, length in enumerate(lengths):
        if not packs or tokens + length > PACK:
            packs.append([])
            tokens = 0
        packs[-1].append(row)
        tokens += length
    return packs


def _logits(model: PreTrainedModel, hidden_BD: Tensor) -> Tensor:
    """Of the next token of every row, shape (B, V), before what keeps their order.

    The stock model hands its head a strided (B, 1, D); in bf16 that product copies the head once a row: 2 GB. What some
    families do to the logits afterwards (scale, soft-cap) keeps their order.
    """
    head = model.get_output_embeddings()
    assert head is not None
    return head(hidden_BD.contiguous())
