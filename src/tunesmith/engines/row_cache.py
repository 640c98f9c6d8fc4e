"""Keys and values of a batch of rows of different lengths, each row read no wider than it needs to be.

A batch decodes together because the weights are read once for all its rows. Its keys are another matter: each row has its
own, and a rectangle as wide as the longest row makes the short ones read padding at every token. Rows of 60 to 700 tokens
spend most of a step there. So every row begins at the left of its own stretch, and rows of about one length form a *bin*
(``_bins``): one batched product a bin, over a rectangle as wide as the longest row that is still being answered in it.

All stretches of a layer lie in one pool. A new token of every row goes there by one indexed copy. A row that ends is replaced
by the last living row of its bin, which is one row copied and not the whole cache.

A bin is always read whole, free slots masked, so that what is read is contiguous: PyTorch's bf16 products on a CPU (oneDNN)
copy any other view before they read it, which took a quarter of a step. Its rows have room for a few tokens more than they
hold (``_capacity``) and all pools are laid out anew when one is full, once in 64 tokens or more. That also keeps the number of
shapes small: oneDNN compiles and keeps a kernel for every shape of a bf16 product, 8 GB after two batches of 96 tokens when
each token had its own (docs/LOG.md).

Refused: pages with a table (PagedAttention, Kwon et al. 2023, arXiv 2309.06180). They serve requests that come and go; here
a batch is known when it begins, and gathering pages for a stock matrix product would copy what the product reads.

Memory: ``sum over bins of rows * slots of a row * G * 2 K`` elements a layer that keeps keys of its own, and one layer's share
twice while pools are laid out anew.

Shape suffixes: T tokens, B rows of a batch that are not done, G key/value heads, K head dimension; here: b rows of a bin, X
slots of a row or (W slots times G) stretches of K elements in a pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.kernels.upload import upload

STEP = 32
GROWTH = 64  # slots that a row gets beyond what it holds, at least
# A bin of its own costs a dozen small operations a layer, some 60 microseconds on one core; for that long a layer of a small
# model (3 key/value heads of 64, fp32) reads the keys and values of 256 tokens.
BIN_COST = 256


class Stretch(NamedTuple):
    """Where one row's tokens lie: slots of the pool before it, and slots of its own."""

    start: int
    capacity: int


@dataclass
class _Bin:
    """Rows of about one length.

    Attributes:
        start: slots of the pool before it.
        capacity: slots of each row, a multiple of ``STEP``.
        lengths: tokens held by each living row; these come first in the bin.
    """

    start: int
    capacity: int
    lengths: list[int]

    def stretch(self, row: int) -> Stretch:
        """Where a row of the bin lies."""
        return Stretch(self.start + row * self.capacity, self.capacity)


class Part(NamedTuple):
    """A bin as one step reads it: rows ``first`` to ``last`` of the batch, slots ``start`` on, ``width`` slots each."""

    first: int
    last: int
    start: int
    width: int

    def of(self, pool_11XK: Tensor, heads: int) -> Tensor:
        """The rows' keys or values, shape (last - first, G, W, K), a contiguous view."""
        rows = self.last - self.first
        pool_XK = pool_11XK[0, 0, self.start * heads : (self.start + rows * self.width) * heads]
        return pool_XK.view(rows, heads, self.width, -1)


class Step:
    """What every layer needs to know about one new token a row, as long as no row leaves and no bin is full.

    Only ``place_B`` changes from a token to the next, where it lies: what a step does is the same work on the same memory,
    which a GPU can record once (``engines/step_graph.py``).

    Attributes:
        parts: the bins, in the order of the rows.
        place_B: own tokens of each row before the new one, which is where it goes; int64.
        slots: of the pool.
    """

    def __init__(self, bins: Sequence[_Bin], slots: int, device: torch.device):
        self.slots = slots
        self.parts: list[Part] = []
        places: list[int] = []
        starts: list[int] = []
        capacities: list[int] = []
        for group in bins:
            rows, first = len(group.lengths), len(places)
            self.parts.append(Part(first, first + rows, group.start, group.capacity))
            places += group.lengths
            starts += [group.stretch(row).start for row in range(rows)]
            capacities += [group.capacity] * rows
        self.place_B, self._start_B, self._capacity_B = upload(torch.tensor([places, starts, capacities]), device)
        self._indices: dict[int, Tensor] = {}
        self._unseen: dict[tuple[int, int, int | None], Tensor] = {}

    def advance(self) -> None:
        """The new tokens are kept: the next ones go behind them."""
        self.place_B += 1
        self.forget()

    def forget(self) -> None:
        """Drop what follows from the places of the new tokens."""
        self._indices.clear()
        self._unseen.clear()

    def index(self, heads: int) -> Tensor:
        """Where in a pool of G heads the new token of each row and head goes, shape (B G,)."""
        if heads not in self._indices:
            head_G = torch.arange(heads, device=self.place_B.device)
            index_BG = (self._start_B * heads + self.place_B)[:, None] + head_G * self._capacity_B[:, None]
            self._indices[heads] = index_BG.flatten()
        return self._indices[heads]

    def unseen(self, part: Part, shared: int, window: int | None) -> Tensor:
        """Which tokens the new token of each row of a part does not see, bool, shape (rows, P + W).

        Args:
            shared: P, tokens of the beginning that all rows share.
            window: tokens that a token sees, itself included; None for all.
        """
        key = (part.first, shared, window)
        if key not in self._unseen:
            position_X = torch.arange(-shared, part.width, device=self.place_B.device)  # counted from a row's own beginning
            place_b1 = self.place_B[part.first : part.last, None]
            unseen_bX = position_X > place_b1
            self._unseen[key] = unseen_bX if window is None else unseen_bX | (position_X <= place_b1 - window)
        return self._unseen[key]


class RowCache(DynamicCache):
    """The rows' own keys and values, to be handed to a stock model as its cache.

    Args:
        lengths: own tokens of each row, ascending.
        room: new tokens that a row may get.
        device: of the model.
    """

    def __init__(self, lengths: Sequence[int], room: int, device: torch.device):
        super().__init__()
        assert list(lengths) == sorted(lengths), "rows come shortest first"
        self._device = device
        self._room = room
        self._bins, self._slots = _bins(lengths, room)
        self._pools: dict[int, tuple[Tensor, Tensor]] = {}
        self._pack: list[tuple[Stretch, int, int]] = []
        self._step: Step | None = None
        self._stretches = [group.stretch(row) for group in self._bins for row in range(len(group.lengths))]

    def take_pack(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Make the next forward pass one over whole rows without padding.

        Args:
            rows: number of each row, and where its tokens begin and end in the pack.
        """
        self._pack = [(self._stretches[row], start, end) for row, start, end in rows]
        self._step = None

    @property
    def free(self) -> int:
        """New tokens that every row may get before its bin is full."""
        return min(group.capacity - max(group.lengths) for group in self._bins)

    def take_step(self) -> Step:
        """Make the next forward passes ones over a new token of every row, until rows leave or the step's room is taken.

        Returns:
            The step of the first of them; ``take`` has to be told how many there are.
        """
        if not self.free:
            self._grow()
        self._step = Step(self._bins, self._slots, self._device)
        return self._step

    def take(self, tokens: int) -> None:
        """So many forward passes over a new token of every row, at most ``free``."""
        assert tokens <= self.free, (tokens, self.free)
        for group in self._bins:
            group.lengths = [length + tokens for length in group.lengths]
        self._room -= tokens

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep new keys and values.

        Args:
            key_states, value_states: of a pack, shape (1, G, T, K), or of a step, shape (B, G, 1, K).

        Returns:
            Those of a pack as they came; of a step the whole pools, shape (1, 1, X, K), of which ``Part.of`` makes views.
        """
        if layer_idx not in self._pools:
            slots = self._slots * key_states.shape[1]
            self._pools[layer_idx] = (
                key_states.new_zeros(1, 1, slots, key_states.shape[3]),  # zeros: a masked NaN would still be one
                value_states.new_zeros(1, 1, slots, value_states.shape[3]),
            )
        pools, heads = self._pools[layer_idx], key_states.shape[1]
        if self._step is not None:
            for pool_11XK, new_BG1K in zip(pools, (key_states, value_states), strict=True):
                pool_11XK[0, 0].index_copy_(0, self._step.index(heads), new_BG1K.flatten(0, 2))
            return pools
        for pool_11XK, new_1GTK in zip(pools, (key_states, value_states), strict=True):
            for stretch, start, end in self._pack:
                _stretch(pool_11XK, stretch, heads)[:, : end - start] = new_1GTK[0, :, start:end]
        return key_states, value_states

    def keep_rows(self, keep: Sequence[int]) -> list[int]:
        """Forget all rows but ``keep``.

        Args:
            keep: numbers of rows in their order before the call.

        Returns:
            The same numbers in the order that the rows have now.
        """
        rows_to_keep, order, first = set(keep), [], 0
        for group in self._bins:
            rows = range(len(group.lengths))
            living = [row for row in rows if first + row in rows_to_keep]
            late = [row for row in living if row >= len(living)]
            place = [row if row in living else late.pop() for row in rows[: len(living)]]
            for row, source in enumerate(place):
                if row != source:
                    self._move(group, source, row)
            order += [first + source for source in place]
            group.lengths, first = [group.lengths[source] for source in place], first + len(rows)
        self._bins = [group for group in self._bins if group.lengths]
        return order

    def _grow(self) -> None:
        """Lay all pools out anew, with room in every bin that is full; rows that have ended are left behind."""
        before, slots, self._slots = self._bins, self._slots, 0
        self._bins = []
        for group in before:
            longest = max(group.lengths)
            capacity = group.capacity if longest < group.capacity else _capacity(longest, self._room)
            self._bins.append(_Bin(self._slots, capacity, group.lengths))
            self._slots += capacity * len(group.lengths)
        for layer, pools in self._pools.items():
            heads = pools[0].shape[2] // slots
            self._pools[layer] = tuple(self._grown_pool(pool_11XK, heads, before) for pool_11XK in pools)  # type: ignore[assignment]

    def _grown_pool(self, pool_11XK: Tensor, heads: int, before: Sequence[_Bin]) -> Tensor:
        """A pool of the present bins with what the bins ``before`` hold."""
        grown_11XK = pool_11XK.new_zeros(1, 1, self._slots * heads, pool_11XK.shape[3])
        for old, new in zip(before, self._bins, strict=True):
            rows = len(new.lengths)
            old_part, new_part = Part(0, rows, old.start, old.capacity), Part(0, rows, new.start, new.capacity)
            new_part.of(grown_11XK, heads)[:, :, : old.capacity] = old_part.of(pool_11XK, heads)
        return grown_11XK

    def _move(self, group: _Bin, source: int, target: int) -> None:
        """Copy one row of a bin over another."""
        there, here = group.stretch(source), group.stretch(target)
        for pools in self._pools.values():
            heads = pools[0].shape[2] // self._slots
            for pool_11XK in pools:
                tokens = slice(0, group.lengths[source])
                _stretch(pool_11XK, here, heads)[:, tokens] = _stretch(pool_11XK, there, heads)[:, tokens]


def _stretch(pool_11XK: Tensor, stretch: Stretch, heads: int) -> Tensor:
    """One row's keys or values, shape (G, capacity, K), a view."""
    start, capacity = stretch
    return pool_11XK[0, 0, start * heads : (start + capacity) * heads].view(heads, capacity, -1)


def _bins(lengths: Sequence[int], room: int) -> tuple[list[_Bin], int]:
    """Rows in bins, and the slots of all of them.

    A bin ends where a wider row would make the rows before it read more than a bin of its own costs.
    """
    bins: list[_Bin] = []
    members: list[int] = []
    slots = 0
    for number, length in enumerate(lengths):
        members.append(length)
        last = number + 1 == len(lengths)
        if last or len(members) * (_rounded(lengths[number + 1]) - _rounded(length)) > BIN_COST:
            capacity = _capacity(length, room)
            bins.append(_Bin(slots, capacity, members))
            slots, members = slots + capacity * len(members), []
    return bins, slots


def _capacity(length: int, room: int) -> int:
    """Slots of a row that holds so many tokens and may get so many more: what is free is read as well, and masked."""
    return _rounded(length + min(room, max(GROWTH, length // 8)))


def _rounded(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
