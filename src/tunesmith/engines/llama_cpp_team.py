"""Processes of llama.cpp that share out the prompts of one call.

The threads of one llama.cpp wait for each other by spinning at a barrier after every product. Beside a busy process most of
their time goes there (docs/LOG.md), while processes of one thread each keep their part of the machine. So prompts are dealt
out: to a process with one thread a physical core, no more than there are runs of prompts and than memory has room for. One
process with all its threads is left where there is little to answer, where memory has no room for two, and where llama.cpp
has a GPU, on which two would only wait for each other.

llama.cpp's server keeps what the last prompt computed and begins where the next one differs; how many tokens are left to read
together decides which of its products are used, and so the last bits of a logit. So that neither the number of processes nor
their speed can turn an answer over, prompts are dealt out as **runs** of neighbours, which follow from their number alone: the
first prompt of a run begins with nothing kept, the others follow the same neighbour wherever the run is answered.
Refused: dealing single prompts (1 answer of 60 changed when the order did), and keeping nothing (every
prompt would read the shared instruction and examples again: 1.6 times as long without any).

The file is mapped, and a page of it lies in memory once. What each process has to itself is the cache, buffers, and a copy of
weights that llama.cpp lays out anew: taken to be as much as the file, and ``OTHER_BYTES``.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import TypeVar

from tunesmith import hardware
from tunesmith.engines.engine import Advance
from tunesmith.engines.llama_model import LlamaProcess
from tunesmith.errors import ExportError

RUNS = 16  # of prompts, the most: each reads what all share once
PROMPTS_A_RUN = 8  # at least: opening a process takes as long as a few short answers
OTHER_BYTES = 150 << 20  # that a process takes beside weights: Python, the library, cache and buffers of a small model

Result = TypeVar("Result")
Compute = Callable[[LlamaProcess, int, bool, int], Result]


class LlamaCppTeam:
    """llama.cpp in as many processes as some prompts are worth; they end with ``close``.

    The first process is opened at once, the others when there is work for them.

    Args:
        gguf: the model file.
        context: tokens of context to reserve.
        lora: adapter GGUF.
        prompts: how many are going to be asked in a call.

    Raises:
        ExportError: llama.cpp cannot run the file.
    """

    def __init__(self, gguf: Path, context: int, lora: Path | None, prompts: int):
        size = processes_for(gguf, prompts)
        threads = 1 if size > 1 else hardware.cpu_count()
        self._new: Callable[[], LlamaProcess] = lambda: LlamaProcess(gguf, context, lora, "server", threads)
        self._processes = [self._new()]
        self._size = 1 if self._processes[0].has_gpu else size

    def run(self, count: int, compute: Compute[Result], advance: Advance) -> list[Result]:
        """Compute items in any of the processes, neighbours in one.

        Args:
            count: of the items.
            compute: from a process, an item's number, whether it begins a run, and the number of processes at work to a result.
            advance: called in this thread as each is done.

        Returns:
            The results in the order of the items.

        Raises:
            ExportError: an item's, or a process cannot be opened or died. The others are ended.
        """
        runs = runs_of(count)
        size = max(1, min(self._size, len(runs)))
        opened = [*self._processes[:size], *[None] * (size - len(self._processes))]
        work, taking, stop = iter(runs), Lock(), Event()
        done = SimpleQueue[tuple[int, Result] | ExportError | None]()

        def own(process: LlamaProcess | None) -> None:
            try:
                if process is None:
                    process = self._new()
                    self._processes.append(process)
                for run in _taken(work, taking):
                    for number in run:
                        if stop.is_set():
                            return
                        done.put((number, compute(process, number, number == run[0], size)))
            except ExportError as error:
                done.put(error)
            finally:
                done.put(None)

        results: dict[int, Result] = {}
        with ThreadPoolExecutor(size) as pool:
            owners = [pool.submit(own, process) for process in opened]
            try:
                working = size
                while working:
                    news = done.get()
                    if isinstance(news, ExportError):
                        raise news
                    if news is None:
                        working -= 1
                    else:
                        results[news[0]] = news[1]
                        advance(1)
                for owner in owners:
                    owner.result()  # an error that is not one of ours
            finally:
                if len(results) < count:
                    stop.set()
                    for process in tuple(self._processes):
                        process.kill()
        return [results[number] for number in range(count)]

    def close(self) -> None:
        """End the processes, their memory counted together. It may be called twice."""
        hardware.note_children([pid for pid in (process.pid for process in self._processes) if pid is not None])
        for process in self._processes:
            process.close()


def processes_for(gguf: Path, prompts: int) -> int:
    """How many processes so many prompts are worth on this machine, as free memory is now."""
    room = hardware.available_memory() // (gguf.stat().st_size + OTHER_BYTES)
    return max(1, min(hardware.physical_cores(), room, len(runs_of(prompts))))


def runs_of(count: int) -> list[range]:
    """So many prompts as runs of neighbours, which do not depend on the machine."""
    length = max(PROMPTS_A_RUN, math.ceil(count / RUNS))
    return [range(start, min(count, start + length)) for start in range(0, count, length)]


def _taken(work: Iterator[range], taking: Lock) -> Iterator[range]:
    """Runs that nobody else has taken."""
    while True:
        with taking:
            run = next(work, None)
        if run is None:
            return
        yield run
