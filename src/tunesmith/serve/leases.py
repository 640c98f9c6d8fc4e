"""Who still answers with something that is to go: it ends when the last of them is done.

A model that is exchanged or taken away while it answers stays with the engine that its answers began with. So an engine counts
the borrowed models, and is retired instead of closed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager


class Leases:
    """Counts who uses something, and ends it when it is retired and nobody does.

    Args:
        end: ends it; called once.
    """

    def __init__(self, end: Callable[[], Awaitable[None]]):
        self._end = end
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending: asyncio.Task[None] | None = None

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Use it until the block ends."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    def retire(self) -> None:
        """End it as soon as nobody uses it. It may be called twice."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._drain())

    async def end(self) -> None:
        """End it now, whoever uses it."""
        self._idle.set()
        self.retire()
        assert self._ending is not None
        await self._ending

    async def _drain(self) -> None:
        await self._idle.wait()
        await self._end()
