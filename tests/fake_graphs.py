"""CUDA graphs of the device that is not there: what a recording must not do, and what a replay uses.

Within a recording the host may not wait, and nothing may be copied from the host: PyTorch's error for the one, a finding for
the other, since a replay would read that memory of the host again, whatever is there by then. Memory that is made within a
recording belongs to the graph: what of it is still held afterwards is a finding but for what is meant to be read
(``Graph.kept``). Memory that was there before is known to the graph by its address alone: a replay behind its end is an error.

A replay computes nothing, as nothing here does. It is one launch, and reads and writes on its stream what was recorded.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch.multiprocessing.reductions import StorageWeakRef

from fake_streams import STREAMS

REFUSED = "CUDA error: operation not permitted when stream is capturing"


class Graph:
    """In the place of ``torch.cuda.CUDAGraph``.

    Attributes:
        kernels: of a replay.
        nbytes: that a replay reads and writes.
        kept: where memory was made in the recording that was held behind its end.
    """

    def __init__(self, keep_graph: bool = False) -> None:
        self.kernels = self.nbytes = 0
        self.kept: list[str] = []
        self._pool = object()
        self._made: dict[int, tuple[StorageWeakRef, str]] = {}
        self._used: dict[int, tuple[StorageWeakRef, bool]] = {}
        self._is_whole = False

    def pool(self) -> Any:
        """What names its memory."""
        assert self._is_whole, "the pool of a graph that was never recorded"
        return self._pool

    def replay(self) -> None:
        """Start it.

        Raises:
            RuntimeError: it was never recorded, or memory that it uses is gone.
        """
        if not self._is_whole:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if gone := [key for key, (ref, _) in self._used.items() if key not in self._made and ref.expired()]:
            raise RuntimeError(f"a graph is replayed that uses memory that was given back: {len(gone)} pieces")
        GRAPHS.replayed(self, self._used)

    def allocated(self, key: int, ref: StorageWeakRef, site: str) -> None:
        """Memory comes to be in the recording."""
        self._made[key] = ref, site

    def used(self, key: int, ref: StorageWeakRef, writes: bool) -> None:
        """Memory is read or written in it."""
        self._used[key] = ref, writes or self._used.get(key, (ref, False))[1]

    def end(self, is_whole: bool) -> None:
        """The recording is over."""
        self._is_whole = is_whole
        self.kept = [site for ref, site in self._made.values() if not ref.expired()]


class Graphs:
    """What is recorded at the moment, and what has been.

    Attributes:
        current: the recording under way.
        recorded: all that came to their end.
        findings: what a recording did that it must not.
        refuses: what CUDA says at the end of a recording that it refuses; empty where it does not.
        is_waiting_refused: as ``torch.cuda.set_sync_debug_mode("error")`` asks for.
        waited, replayed: called where the host waits for a recording to begin, and for every replay.
    """

    def __init__(self) -> None:
        self.current: Graph | None = None
        self.recorded: list[Graph] = []
        self.findings: list[str] = []
        self.is_waiting_refused = False
        self.refuses = ""
        self.waited: Callable[[str], None] = lambda what: None
        self.replayed: Callable[[Graph, dict[int, tuple[StorageWeakRef, bool]]], None] = lambda graph, used: None

    def refuse_wait(self) -> None:
        """The host is about to wait.

        Raises:
            RuntimeError: where it may not.
        """
        if self.current is not None:
            raise RuntimeError(REFUSED)
        if self.is_waiting_refused:
            raise RuntimeError("called a synchronizing CUDA operation")

    def set_mode(self, mode: str | int) -> None:
        """In the place of ``torch.cuda.set_sync_debug_mode``."""
        self.is_waiting_refused = mode in ("error", 2)

    @contextlib.contextmanager
    def capture(self, graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        """In the place of ``torch.cuda.graph``.

        Raises:
            RuntimeError: it is refused.
        """
        assert capture_error_mode in ("global", "thread_local", "relaxed") and self.current is None
        self.waited("capture")
        with STREAMS.on(stream):
            self.current = graph
            is_whole = False
            try:
                yield
                if self.refuses:
                    raise RuntimeError(self.refuses)
                is_whole = True
            finally:
                self.current = None
                graph.end(is_whole)
        self.recorded.append(graph)


GRAPHS = Graphs()
