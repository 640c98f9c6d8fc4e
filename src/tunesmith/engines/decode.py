"""Greedy decoding on token ids: prompts read in packs without padding, then one token a row and step.

*Reading.* Prompts of 60 to 700 tokens in one rectangle are mostly padding. Here the prompts of a batch lie one after another,
as documents do in training, in packs of at most ``PACK`` tokens, and each writes its keys and values to its place in the
cache. The head sees the last position of each.

*Writing.* Rows leave the batch when they end, so one rambling answer does not keep thirty finished ones computing. What all
prompts begin with is computed once for all batches (``engines/shared_prefix.py``). ``model.generate`` does neither; it is the
oracle in the tests. On a GPU, whose time goes to launches, a step is recorded and replayed as one launch
(``engines/step_graph.py``); rows that have ended stay there until they are half of the batch.

Rows are taken shortest first, so a batch holds rows of like lengths, and the bins of its cache (``engines/row_cache.py``) too.
Batches are about equal: a last one of four rows takes a third of the time of a full one. On a CPU they are dealt out to
processes of one thread (``engines/deal.py``), so a call of some rows is several batches, whatever ``batch_size`` allows; which
rows share a batch follows from rows and recipe alone.

Memory beside the weights, in elements: the cache of a batch, ``2 G K`` a layer for every slot (``engines/row_cache.py``), and
one layer's activations of one pack, ``PACK * (4 D + 3 F + 3 (H + G) K + 512 H)`` with F the width of the MLP, whatever the
batch: 0.1 GB for a model of 135 M weights in fp32, where 64 rows of 700 tokens in one rectangle took 8.6 GB. A prompt of
more than ``PACK`` tokens is a pack of its own and counts with its own length.

Shape suffixes: N rows (prompts), T tokens, B rows of a batch, D hidden size, V vocabulary; here: R rows of a pack, b rows of a
batch that have not ended, S new tokens.
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

from tunesmith.engines.deal import Widths, dealt_out, is_dealt_out, shared
from tunesmith.engines.row_cache import GROWTH, RowCache
from tunesmith.engines.shared_prefix import DECODE, MIN_SHARED, PREFILL, Prefix, common_beginning, compute_prefix
from tunesmith.engines.step_graph import AHEAD, StepGraphs, graphs_of
from tunesmith.engines.token_step import TokenStep, next_logits
from tunesmith.kernels.attention import Span
from tunesmith.kernels.upload import upload
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
    batches = _batches(order, batch_size, to_deal_out=is_dealt_out(model.device))
    rests = [[len(prompts[number]) - shared_tokens for number in batch] for batch in batches]
    widths, most = Widths(model), stop_rule.max_new_tokens
    costs = [widths.flop(sum(rest) + len(rest) * most, len(rest) * most) for rest in rests]
    needed = max(_batch_bytes(widths, rest, most, constrain is not None) for rest in rests)
    graphs = graphs_of(model)
    ids_NT = shared((len(prompts), most), torch.int32, torch.device("cpu"))
    with dealt_out(model, costs, needed) as run:
        prefix = compute_prefix(model, prompts[0][:shared_tokens]) if shared_tokens else {}

        def answer(item: int) -> bytes:
            begun, batch = time.perf_counter(), batches[item]
            suffixes = [prompts[number][shared_tokens:] for number in batch]
            choice = None if constrain is None else constrain(batch)
            new_ids, changed = _batch(model, suffixes, prefix, shared_tokens, stop_rule, choice, graphs)
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
    graphs: StepGraphs | None,
) -> tuple[list[list[int]], set[int]]:
    """New token ids of each row, and the rows in which the constraint changed a choice.

    Args:
        suffixes: what follows the shared beginning, shortest first.
        graphs: what records a step of a shape that comes often; None where nothing does.
    """
    cache = RowCache([len(ids) for ids in suffixes], stop_rule.max_new_tokens, model.device)
    logits_BV = _prefill(model, suffixes, cache, prefix, shared)
    rows = _Rows(len(suffixes), stop_rule, constraint)
    ids_B = logits_BV.argmax(-1)
    rows.choose(logits_BV, ids_B)
    rows.take(ids_B[None])
    with attention(model, DECODE):
        while (left := rows.left) > 0:
            if rows.should_leave(graphs is not None and graphs.pays(min(cache.free, left))):
                ids_B = ids_B[upload(torch.tensor(rows.leave(cache)), ids_B.device)]
            step = TokenStep(model, cache, prefix, shared, ids_B)
            ids_B, free = step.ids_B, min(cache.free, left)
            graph = None if graphs is None else graphs.recorded(step, free)
            while free and rows.left and not rows.should_leave(graph is not None):
                ahead = min(AHEAD if graph is not None and rows.may_run_ahead else 1, free)
                cache.take(ahead)
                free -= ahead
                ids_SB = ids_B.new_empty(ahead, len(ids_B))
                for new_B in ids_SB:
                    (graph or step)()
                    new_B.copy_(ids_B)
                assert step.logits_BV is not None
                if rows.choose(step.logits_BV, ids_B):
                    ids_SB = ids_B[None]
                rows.take(ids_SB)
    return rows.new_ids, rows.changed


class _Rows:
    """The answers of a batch as they are written, and which rows the model still computes.

    Attributes:
        new_ids: of each row by its number.
        changed: numbers of the rows in which the constraint changed a choice.
        may_run_ahead: whether the next token is nobody's choice but the model's, and an end is seen in the tokens alone.
    """

    def __init__(self, count: int, stop_rule: StopRule, constraint: Choice | None):
        self.new_ids: list[list[int]] = [[] for _ in range(count)]
        self.changed: set[int] = set()
        self.may_run_ahead = constraint is None and stop_rule.is_complete is None
        self._stop_rule, self._constraint = stop_rule, constraint
        self._computed = list(range(count))  # numbers of the rows in the order of the batch
        self._living = list(range(count))  # of them, those that have not ended, in the same order: those of the constraint
        self._taken = 0

    @property
    def left(self) -> int:
        """Tokens that a row may still get; 0 where all have ended."""
        return self._stop_rule.max_new_tokens - self._taken if self._living else 0

    def choose(self, logits_BV: Tensor, ids_B: Tensor) -> bool:
        """Let the constraint choose: ``ids_B``, the likeliest tokens, become those that it wants; whether there is one."""
        if self._constraint is None:
            return False
        likeliest_b = ids_B
        if len(self._living) < len(self._computed):
            at_b = upload(torch.tensor([self._computed.index(row) for row in self._living]), ids_B.device)
            logits_BV, likeliest_b = logits_BV[at_b], ids_B[at_b]
        else:
            at_b = None
        chosen_b = self._constraint.change(logits_BV).argmax(-1)
        self.changed |= {self._living[place] for place in (chosen_b != likeliest_b).nonzero()[:, 0].tolist()}
        if at_b is None:
            ids_B.copy_(chosen_b)
        else:
            ids_B.index_copy_(0, at_b, chosen_b)
        return True

    def take(self, ids_SB: Tensor) -> None:
        """Add new tokens to the answers, S of every row that is computed; those behind an answer's end are nobody's."""
        ended: set[int] = set()
        for tokens in ids_SB.tolist():
            self._taken += 1
            of_row = dict(zip(self._computed, tokens, strict=True))
            if self._constraint is not None:
                self._constraint.accept([of_row[row] for row in self._living])
            for row in self._living:
                if row not in ended:
                    self.new_ids[row].append(of_row[row])
                    if self._stop_rule.ended(self.new_ids[row]):
                        ended.add(row)
        if ended:
            self._keep_living([row for row in self._living if row not in ended])

    def should_leave(self, is_lazy: bool) -> bool:
        """Whether rows that have ended leave the batch: at once, or when they are half of it."""
        living, computed = len(self._living), len(self._computed)
        return 2 * living <= computed if is_lazy else living < computed

    def leave(self, cache: RowCache) -> list[int]:
        """Let them; places of the others in the batch before, in the order of the batch now."""
        living = set(self._living)
        order = cache.keep_rows([place for place, row in enumerate(self._computed) if row in living])
        self._computed = [self._computed[place] for place in order]
        self._keep_living(self._computed)
        return order

    def _keep_living(self, rows: list[int]) -> None:
        """Some or all of the living rows, in this order."""
        if self._constraint is not None and rows != self._living:
            self._constraint.keep_rows([self._living.index(row) for row in rows])
        self._living = list(rows)


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
                input_ids=upload(torch.tensor([ids]), model.device),
                position_ids=upload(torch.tensor([positions]), model.device),
                past_key_values=cache,
                use_cache=True,
                prefix=prefix,
                spans=spans,
            ).last_hidden_state
            ends_R = upload(torch.tensor([span.end - 1 for span in spans]), model.device)
            last.append(hidden_1TD[0, ends_R])
    return next_logits(model, torch.cat(last))


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
