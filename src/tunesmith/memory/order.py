"""Which layer is asked for next: what followed the last time, and before there was one, the order of a training.

A training goes up through the layers and down again, pack after pack; a dev loss goes up only and begins anew; a decoder does
so for every token. Nobody tells a streamed layer which of them is under way. So the two last layers are looked up in what was
seen: after 5, 6 came 7; after 31, 30 came 29; after 30, 31 came 30 in training and 0 in an evaluation, whichever was later. The
first time it is the next one in the same direction, turning at both ends. A wrong guess costs a copy, never a number.

Refused: a schedule that the loop hands down (every new loop would need one, and one that is wrong would not be slow but wrong);
asking whether gradients are on (within an autograd function they are off).
"""


class Order:
    """What is asked for after what.

    Args:
        first: the lowest layer that is streamed.
        count: layers of the model.
    """

    def __init__(self, first: int, count: int):
        self._first, self._last = first, count - 1
        self._after: dict[tuple[int, int], int] = {}
        self._before: tuple[int, int] = (first - 1, first - 1)

    def turn(self, layer: int) -> None:
        """A layer is asked for that is not the one of the moment."""
        self._after[self._before] = layer
        self._before = (self._before[1], layer)

    def next(self, count: int) -> list[int]:
        """The layers that will be asked for after the one of the moment, the nearest first, none twice, nor that one."""
        at = self._before
        found: list[int] = []
        for _ in range(2 * (self._last - self._first + 1)):
            if len(found) == count:
                break
            at = (at[1], self._follower(at))
            if at[1] not in found and at[1] != self._before[1]:
                found.append(at[1])
        return found

    def _follower(self, at: tuple[int, int]) -> int:
        if at in self._after:
            return self._after[at]
        previous, layer = at
        step = 1 if layer >= previous else -1
        if not self._first <= layer + step <= self._last:
            step = -step
        return min(max(layer + step, self._first), self._last)
