"""What the device that is not there has seen: launches, bytes, what is alive, where the host waited, what raced."""

import sys
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fake_graphs import GRAPHS, Graph
from fake_streams import STREAMS

ROUNDED_TO = 512  # bytes: what PyTorch's allocator rounds a block to
FREE = {  # of launches: views, and memory that nobody has written
    *("view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "expand", "detach"),
    *("split", "split_with_sizes", "alias", "as_strided", "unbind", "narrow", "unflatten", "_reshape_alias", "lift_fresh"),
    *("view_as", "diagonal", "unfold", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
}


class Watch:
    """What the device that is not there has seen since the last ``reset``.

    Attributes:
        waits: what the host waited for and where in our code, and how many launches there had been.
        uploads: bytes, pinned, asynchronous, where.
        downloads: bytes and where.
        launches: operations by name, Triton's kernels among them.
        touched: bytes read and written, by name.
        kernels: recorded launches of Triton, each once.
        peak: live bytes at most.
        races: places that touch what another stream has written or still reads, with nothing between that waits.
        sites: launches by name and place; None where nobody asked, since every launch looks for its place then.
    """

    def __init__(self) -> None:
        self.kernels: dict[str, dict[str, Any]] = {}
        self.capability: tuple[int, int] = (9, 0)
        self.sites: Counter[str] | None = None
        STREAMS.waited = GRAPHS.waited = self.waited
        GRAPHS.replayed = self.replayed
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = 0
        self.reset()

    def reset(self) -> None:
        """Forget the counts, not what is alive nor the kernels."""
        self.waits: list[tuple[str, int]] = []
        self.uploads: list[tuple[int, bool, bool, str]] = []
        self.downloads: list[tuple[int, str]] = []
        self.launches: Counter[str] = Counter()
        self.touched: Counter[str] = Counter()
        self.races: list[str] = []
        GRAPHS.recorded, GRAPHS.findings = [], []
        self.peak = self.live()
        if self.sites is not None:
            self.sites = Counter()

    def live(self) -> int:
        """Bytes alive now."""
        for key in [key for key, (ref, _) in self._live.items() if ref.expired()]:
            self._total -= self._live.pop(key)[1]
        return self._total

    def allocated(self, meta: torch.Tensor) -> None:
        """A tensor of the device has come to be."""
        storage = meta.untyped_storage()
        key = storage._cdata
        if key in self._live:
            if not self._live[key][0].expired():
                return
            self._total -= self._live.pop(key)[1]
        STREAMS.forget(key)
        if GRAPHS.current is not None:
            GRAPHS.current.allocated(key, StorageWeakRef(storage), site())
        nbytes = -(-storage.nbytes() // ROUNDED_TO) * ROUNDED_TO
        self._live[key] = StorageWeakRef(storage), nbytes
        self._total += nbytes
        if self._total > self.peak:
            self.peak = max(self.peak, self.live())

    def launched(self, name: str, read: Iterable[torch.Tensor], written: Iterable[torch.Tensor]) -> None:
        """An operation has run."""
        if name in FREE:
            return
        nbytes = sum(x.numel() * x.element_size() for x in (*read, *written))
        self.launches[name] += 1
        self.touched[name] += nbytes
        if GRAPHS.current is not None:
            GRAPHS.current.kernels += 1
            GRAPHS.current.nbytes += nbytes
        if self.sites is not None:
            self.sites[f"{name} {site()}"] += 1

    def touched_by(self, tensors: Iterable[torch.Tensor], writes: bool) -> None:
        """Memory is read or written on the stream of the moment."""
        tensors = list(tensors)
        if GRAPHS.current is not None:  # recorded, not done
            for storage in (tensor.untyped_storage() for tensor in tensors):
                GRAPHS.current.used(storage._cdata, StorageWeakRef(storage), writes)
            return
        self.races += [site()] * STREAMS.touched([tensor.untyped_storage()._cdata for tensor in tensors], writes)

    def waited(self, what: str) -> None:
        """The host waited for the device; a thread that waits beside it holds nobody up."""
        if threading.current_thread() is threading.main_thread():
            GRAPHS.refuse_wait()
            self.waits.append((f"{what} {site()}", sum(self.launches.values())))

    def replayed(self, graph: Graph, used: dict[int, tuple[StorageWeakRef, bool]]) -> None:
        """A graph is started."""
        self.launches["graph replay"] += 1
        self.touched["graph replay"] += graph.nbytes
        for writes in (False, True):
            keys = [key for key, (_, is_written) in used.items() if is_written or not writes]
            self.races += [site()] * STREAMS.touched(keys, writes)

    def figures(self) -> dict[str, Any]:
        """All of it as numbers and strings."""
        sums = {"launches": sum(self.launches.values()), "bytes": sum(self.touched.values()), "peak": self.peak}
        lists = {"waits": list(self.waits), "uploads": list(self.uploads), "downloads": list(self.downloads)}
        names = {"by_name": dict(self.launches.most_common()), "bytes_by_name": dict(self.touched.most_common(20))}
        graphs = [{"kernels": graph.kernels, "bytes": graph.nbytes, "kept": graph.kept} for graph in GRAPHS.recorded]
        lists |= {"graphs": graphs, "in_graphs": list(GRAPHS.findings)}
        return {**sums, **lists, **names, "races": self.races, "sites": dict((self.sites or Counter()).most_common(60))}


WATCH = Watch()


def site() -> str:
    """The nearest line of the project, and before it the nearest of transformers where that lies between."""
    between, frame = "", sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/tunesmith/" in path or "/benchmarks/" in path:
            return f"{between}{path.rpartition('/tunesmith/')[2].rpartition('/benchmarks/')[2]}:{frame.f_lineno}"
        if "/transformers/" in path and not between:
            between = f"{path.rpartition('/')[2]}:{frame.f_lineno} < "
        frame = frame.f_back
    return between or "?"
