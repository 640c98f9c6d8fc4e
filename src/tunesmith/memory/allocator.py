"""PyTorch's caching allocator on paper: how many bytes it takes from the card for some tensors that come and go.

Rules of torch 2.13 (``c10/cuda/CUDACachingAllocator.cpp``): sizes are rounded up to 512 bytes. Up to 1 MiB a tensor comes from
segments of 2 MiB; up to 10 MiB from segments of 20; beyond from a segment of its own size, rounded up to 2 MiB. The smallest
free block that holds it is taken and cut where what is left is worth it (512 bytes of a small one, more than 1 MiB of a large
one); neighbours that are free are joined; nothing is given back. With expandable segments each kind has one segment that grows,
by 2 or 20 MiB, so that only holes are lost.

Refused: counting blocks by a factor alone, which is right for one model. Cost: some milliseconds for a step.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MIB = 2**20
SMALL, MIDDLE = MIB, 10 * MIB


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What an allocator came to.

    Attributes:
        allocated: bytes of blocks in use at most.
        reserved: bytes taken from the card.
        segments: how often it asked the card.
    """

    allocated: int
    reserved: int
    segments: int


class _Block:
    """A run of bytes of a segment."""

    def __init__(self, size: int, before: "_Block | None" = None, after: "_Block | None" = None):
        self.size, self.before, self.after, self.is_free = size, before, after, True


def replay(events: Iterable[tuple[str, int]], expandable: bool = False) -> Replayed:
    """The bytes that an allocator takes for some events.

    Args:
        events: a name and its bytes when it comes, the name and -1 when it goes, in order.
        expandable: as under ``PYTORCH_ALLOC_CONF=expandable_segments:True``.

    Raises:
        KeyError: something goes that has not come.
    """
    free: dict[bool, list[_Block]] = {True: [], False: []}  # by whether it is small
    heads: dict[bool, _Block] = {}  # of the segments that grow; whatever is joined, the first stays
    live: dict[str, tuple[_Block, bool]] = {}
    allocated = most = reserved = segments = 0
    for name, nbytes in events:
        if nbytes < 0:
            block, small = live.pop(name)
            allocated -= block.size
            _release(block, free[small])
            continue
        size = max(512, -(-nbytes // 512) * 512)
        small = size <= SMALL
        block = min((b for b in free[small] if b.size >= size), key=lambda b: b.size, default=None)
        if block is None:
            more = _segment(size)
            if expandable:
                tail = _last(heads[small]) if small in heads else None
                spare = tail.size if tail is not None and tail.is_free else 0
                unit = (2 if small else 20) * MIB
                more = -(-(size - spare) // unit) * unit
            reserved, segments = reserved + more, segments + 1
            block = _Block(more)
            if expandable and small in heads:
                block.before = _last(heads[small])
                block.before.after = block
            heads.setdefault(small, block)
            block.is_free = False
            block = _release(block, free[small])
        free[small].remove(block)
        left = block.size - size
        if left >= 512 if small or expandable else left > SMALL:
            rest = _Block(left, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            free[small].append(rest)
        block.is_free = False
        live[name] = block, small
        allocated += block.size
        most = max(most, allocated)
    return Replayed(allocated=most, reserved=reserved, segments=segments)


def _segment(size: int) -> int:
    if size <= SMALL:
        return 2 * MIB
    return 20 * MIB if size < MIDDLE else -(-size // (2 * MIB)) * 2 * MIB


def _last(block: _Block) -> _Block:
    while block.after is not None:
        block = block.after
    return block


def _release(block: _Block, free: list[_Block]) -> _Block:
    """Mark a block free and join it with free neighbours, into the first of them."""
    block.is_free = True
    if block.after is not None and block.after.is_free:
        free.remove(block.after)
        _join(block, block.after)
    if block.before is not None and block.before.is_free:
        first = block.before
        _join(first, block)
        return first
    free.append(block)
    return block


def _join(first: _Block, second: _Block) -> None:
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
