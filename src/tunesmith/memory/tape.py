"""What is alive while something is computed: tensors by name, their bytes summed by term, and the most there was.

A tape is told what a piece of the step allocates and frees, in order. Its events are what ``memory/allocator.py`` replays.
"""

from collections import Counter

GRANULE = 512  # bytes that PyTorch's GPU allocator rounds a block to


class Tape:
    """Events of memory, and what is alive.

    Attributes:
        now, peak: bytes.
        live: bytes by term now; ``at_peak`` likewise.
        prefix: of the names that are told; one layer's are not another's.
        events: (name, bytes) for an allocation, (name, -1) for the end of one.
    """

    def __init__(self, granule: int = GRANULE):
        self.granule, self.prefix = granule, ""
        self.now = self.peak = 0
        self.live: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.events: list[tuple[str, int]] = []
        self._names: dict[str, tuple[int, str]] = {}

    def hold(self, name: str, nbytes: float, term: str) -> None:
        """A tensor comes to be; nothing where it has no bytes."""
        size = -(-int(nbytes) // self.granule) * self.granule
        if not size:
            return
        name = self.prefix + name
        assert name not in self._names, name
        self._names[name] = size, term
        self.events.append((name, size))
        self.now += size
        self.live[term] += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, Counter(self.live)

    def free(self, *names: str) -> None:
        """Tensors end; a name that is not there counts for nothing."""
        for name in (self.prefix + name for name in names):
            if name in self._names:
                size, term = self._names.pop(name)
                self.events.append((name, -1))
                self.now -= size
                self.live[term] -= size

    def end(self, prefix: str) -> None:
        """All tensors end whose names begin so."""
        self.free(*(name.removeprefix(self.prefix) for name in list(self._names) if name.startswith(self.prefix + prefix)))

    def mark(self) -> None:
        """Begin the peak anew."""
        self.peak, self.at_peak = self.now, Counter(self.live)
