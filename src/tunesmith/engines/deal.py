"""Work on a loaded model that is dealt out: batches of answers, packs of what is scored.

On a CPU each item is computed by one thread, in whichever of a few processes is free (``models/ranks.py`` says how many). They
are forked when something is asked, when the model lies in memory and what all items share was computed; a fork copies page
tables, milliseconds a GB. An item's result is small: lengths, sums. What is larger (token ids, hidden states, logits) is
written to memory that all of them share (``shared``), so that nobody waits with a full pipe for a process that computes.

What the items are follows from rows and recipe alone, never from the machine's cores, and each is computed with one thread
wherever it is; so neither answers nor scores depend on the number of processes. Work of one item is done by one process with a
thread a core, and so is all of it where no process can be forked or memory has no room for two.

On a GPU everything is computed here.

**Launched together** (``launch/group.py``), all processes are asked the same at once (``engines/dealt.py``): each computes its
share of the items, and what comes of them is handed round, so all have the same afterwards, and every item was computed once.

Refused: processes that live as long as the model (an adapter that is switched off, or merged, would stay as it was in them).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.errors import RunError
from tunesmith.launch.group import Group
from tunesmith.models.ranks import Load, Shape, deal, longest_first, obstacle_to_computing, shape_of, threads
from tunesmith.processes import Team, shared_memory

logger = logging.getLogger(__name__)

OTHER_BYTES = 100 << 20  # that a process takes beside what its caller counted: kernels, copies of written pages
HINT = "a smaller evaluate.batch_size needs less memory"

_together: ContextVar[Group | None] = ContextVar("together", default=None)
_made: ContextVar[list[Tensor] | None] = ContextVar("made", default=None)  # shared tensors that nobody handed round yet
Compute = Callable[[int], bytes]  # number of an item to its result
Advance = Callable[[int], None]  # number of an item that is done
Run = Callable[[Compute, Advance], list[bytes]]


@contextmanager
def dealt_out(model: PreTrainedModel, costs: Sequence[float], rank_bytes: int) -> Iterator[Run]:
    """Within the block torch computes with as many threads as the items will be; the function that it gives computes them.

    Args:
        costs: FLOP of each item, foretold.
        rank_bytes: that computing the largest of them takes beside the model.

    Returns:
        A function of what computes an item, in any of the processes, and of what is called here as each is done. It forks,
        computes, ends what it forked, and returns the results in the order of the items.
    """
    if (group := _together.get()) is not None:
        with threads(1 if model.device.type == "cpu" else None):
            yield _Handed(group, costs)
        return
    shape = _shape(model, costs, rank_bytes)

    def run(compute: Compute, advance: Advance) -> list[bytes]:
        if shape.ranks > 1:
            hardware.release_freed_memory()  # of which every process would copy the pages that it writes
        hardware.keep_freed_memory()
        with Team(shape.ranks, "answering process", lambda _, item: compute(item), begin, RunError, HINT) as team:
            results = team.run(b"", longest_first(costs), advance)
        return [results[item] for item in range(len(costs))]

    def begin() -> None:
        torch.set_num_threads(shape.threads)

    logger.debug(f"{len(costs)} items: {shape}")
    with threads(shape.threads):
        yield run


def _shape(model: PreTrainedModel, costs: Sequence[float], rank_bytes: int) -> Shape:
    if model.device.type != "cpu":
        return Shape(1, torch.get_num_threads(), "a GPU")
    load = Load(
        items=len(costs),
        flop=sum(costs),
        rank_bytes=rank_bytes + OTHER_BYTES,
        base_bytes=int(model.get_memory_footprint()),
    )
    return shape_of("auto", load, obstacle_to_computing())


def shared(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that every process of a later ``dealt_out`` writes for all; on a GPU there is one process."""
    count = math.prod(shape)
    if (made := _made.get()) is not None:
        made.append(torch.zeros(*shape, dtype=dtype, device=device))
        return made[-1]
    if device.type != "cpu" or count == 0:
        return torch.zeros(*shape, dtype=dtype, device=device)
    return torch.frombuffer(shared_memory(count * dtype.itemsize), dtype=dtype, count=count).view(*shape)


@contextmanager
def together(group: Group) -> Iterator[None]:
    """Within the block, in all processes of a group at once, every ``dealt_out`` is dealt out to them."""
    here, tensors = _together.set(group), _made.set([])
    try:
        yield
    finally:
        _together.reset(here)
        _made.reset(tensors)


def is_dealt_out(device: torch.device) -> bool:
    """Whether several items are computed at once, so that there should be several."""
    return device.type == "cpu" or _together.get() is not None


class _Handed:
    """Computes the share of this process, and hands results and shared tensors round."""

    def __init__(self, group: Group, costs: Sequence[float]):
        self._group, self._count, self._dealt = group, len(costs), deal(costs, group.size)

    def __call__(self, compute: Compute, advance: Advance) -> list[bytes]:
        own: dict[int, bytes] = {}
        for item in self._dealt[self._group.rank]:
            own[item] = compute(item)
            advance(item)
        results = self._group.hand_round(own)
        for item in sorted(results.keys() - own.keys()):
            advance(item)
        made = _made.get()
        assert made is not None
        for tensor in made:  # zeros but where one process wrote
            self._group.add_up(tensor)
        made.clear()
        return [results[item] for item in range(self._count)]


class Widths:
    """Sizes of a model that memory and arithmetic follow from; where layers differ, the largest.

    Attributes:
        layers, hidden, intermediate, vocabulary, heads: as in its configuration.
        query, key: features of a layer's queries, and of its keys.
        nbytes: of a number.
    """

    def __init__(self, model: PreTrainedModel):
        config: Any = model.config.get_text_config()
        stated = vars(config)
        self.layers, self.hidden, self.heads = map(
            int, (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
        )
        width = int(stated.get("head_dim") or self.hidden // self.heads)
        self.query, self.key = self.heads * width, int(stated.get("num_key_value_heads") or self.heads) * width
        intermediate = stated.get("intermediate_size") or 4 * self.hidden
        self.intermediate = max(intermediate) if isinstance(intermediate, list) else int(intermediate)
        self.vocabulary = int(config.vocab_size)
        self.nbytes = model.dtype.itemsize

    def flop(self, tokens: int, logits: int) -> float:
        """Of reading so many tokens and computing the logits behind some of them."""
        layer = self.hidden * (2 * self.query + 2 * self.key + 3 * self.intermediate)
        return 2.0 * (tokens * self.layers * layer + logits * self.hidden * self.vocabulary)

    def reading_bytes(self, tokens: int) -> int:
        """Of one layer's activations while a pack of so many tokens is read (``engines/decode.py``)."""
        wide = 4 * self.hidden + 3 * self.intermediate + 3 * (self.query + self.key) + 512 * self.heads
        return tokens * wide * self.nbytes
