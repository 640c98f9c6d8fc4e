"""An interval: two ends that unpack like a pair and read like a record.

>>> low, high = Interval(0.1, 0.3)
>>> Interval(0.1, 0.3).hull(Interval(0.2, 0.5))
Interval(low=0.1, high=0.5)
"""

from typing import NamedTuple


class Interval(NamedTuple):
    """The ends of an interval; the level stands with whoever returns one."""

    low: float
    high: float

    def hull(self, other: "Interval") -> "Interval":
        """The smallest interval that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))
