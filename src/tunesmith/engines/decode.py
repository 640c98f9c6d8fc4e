"""Greedy decoding on token ids: prompts read in packs without padding, then one token a row and step.

*Reading.* Prompts of 60 to 700 tokens in one rectangle are mostly padding. Here the prompts of a batch lie one after another,
as documents do in training, in packs of at most ``PACK`` tokens, and each writes its keys and values to its place in the
cache. The head sees the last position of each.

*Writing.* Rows leave the batch when they end, so one rambling answer does not keep thirty finished ones computing. What all
prompts begin with is computed once for all batches (``engines/shared_prefix.py``). ``model.generate`` does neither; it is the
oracle in the tests.

Rows are taken shortest first, so a batch holds rows of like lengths, and the bins of its cache (``engines/row_cache.py``) too.
Batches are about equal: a last one of four rows takes a third of the time of a full one.

Memory beside the weights, in elements: the cache of a batch, ``2 G K`` a layer for every slot (``engines/row_cache.py``), and
one layer's activations of one pack, ``PACK * (4 D + 3 F + 3 (H + G) K + 512 H)`` with F the width of the MLP, whatever the
batch: 0.1 GB for a model of 135 M weights in fp32, where 64 rows of 700 tokens in one rectangle took 8.6 GB. A prompt of
more than ``PACK`` tokens is a pack of its own and counts with its own length.

Shape suffixes: T tokens, B rows of a batch that are not done, D hidden size, V vocabulary; here: R rows of a pack.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.engines.row_cache import RowCache
from tunesmith.engines.shared_prefix import DECODE, MIN_SHARED, PREFILL, Prefix, common_beginning, compute_prefix
from tunesmith.kernels.attention import Span
from tunesmith.models.load import attention, decoder

# Tokens read at once. Products of a few hundred rows run as fast as a core can; more only cost memory there, and a GPU is
# busy with two thousand.
PACK = 2048


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
        seconds: wall time of its batch divided by the rows of the batch.
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
    constrain: Callable[[int], Choice] | None = None,
) -> list[Generation]:
    """The likeliest next token, again and again, of every prompt, in order.

    Args:
        prompts: token ids, at least one each.
        batch_size: rows decoded together, up to an eighth more where that saves a batch.
        advance: called with the number of answers done.
        constrain: makes what has a say in the choice, a grammar or the dice of a sample, for a batch of so many rows; None for
            the likeliest token.
    """
    shared = common_beginning(list(prompts))
    shared = shared if shared >= MIN_SHARED else 0
    prefix = compute_prefix(model, prompts[0][:shared]) if shared else {}
    hardware.keep_freed_memory()
    answers: dict[int, Generation] = {}
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for batch in _batches(order, batch_size):
        started = time.perf_counter()
        suffixes = [prompts[number][shared:] for number in batch]
        constraint = None if constrain is None else constrain(len(batch))
        new_ids, changed = _batch(model, suffixes, prefix, shared, stop_rule, constraint)
        seconds = (time.perf_counter() - started) / len(batch)
        for row, (number, ids) in enumerate(zip(batch, new_ids, strict=True)):
            answers[number] = Generation(ids, seconds, row not in changed)
        advance(len(batch))
    return [answers[number] for number in range(len(prompts))]


def _batches(order: list[int], batch_size: int) -> list[list[int]]:
    """Rows in order, as few batches as batches of ``batch_size`` and an eighth make, of equal sizes but for one row."""
    count = -(-len(order) // (batch_size + batch_size // 8))
    borders = [number * len(order) // count for number in range(count + 1)]
    return [order[start:end] for start, end in pairwise(borders)]


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
