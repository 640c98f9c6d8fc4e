"""How much of the server one request may take, and how many requests are in the house.

Three bounds keep it answering when more is asked than it can do. *In the house* are the requests that are being answered or
wait for a slot; one more is turned away at once with 429, before its body is read, because a client that is told can go
elsewhere or come back. *Slots* are the answers under way, as many as the engine decodes at a time; who waits for one does so
in the order of arrival. *Times*: to read a body, to wait for a slot, to the first token, to the last.

When the server goes, who is in the house is answered and nobody else comes in.

Refused: a queue without an end, which answers when nobody listens any more.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from tunesmith.serve.api_error import ApiError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds.

    Attributes:
        slots: answers under way.
        queue: requests that wait for a slot.
        body: bytes of a request's body.
        choices: answers that one request may ask for (``n``, and the prompts of a completion).
        body_s, queue_s, first_token_s, whole_s: seconds to read a body, to wait for a slot, until the first token, and from
            the slot to the last token.
        ping_s: seconds of silence after which a stream says that it is alive.
        grace_s: seconds that answers under way have to end when the server goes.
    """

    slots: int = 4
    queue: int = 64
    body: int = 4 * 1024 * 1024
    choices: int = 16
    body_s: float = 30.0
    queue_s: float = 60.0
    first_token_s: float = 300.0
    whole_s: float = 600.0
    ping_s: float = 10.0
    grace_s: float = 30.0


class House:
    """Who is in the house, and who has a slot."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.inside = self.running = self.waiting = 0
        self.leaving = False
        self._slots = asyncio.Semaphore(limits.slots)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """In the house until the block ends.

        Raises:
            ApiError: it is full (429), or the server goes (503).
        """
        if self.leaving:
            raise going()
        if self.inside >= self.limits.slots + self.limits.queue:
            said = f"{self.inside} requests are being answered or wait, the most that this server takes; try again in a moment."
            raise ApiError(429, said, "server_busy", headers={"Retry-After": "1"})
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One of the slots until the block ends.

        Raises:
            ApiError: there was none for too long.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(self.limits.queue_s):
                await self._slots.acquire()
        except TimeoutError:
            said = f"no slot became free in {self.limits.queue_s:g} seconds; try again later."
            raise ApiError(503, said, "queue_timeout", headers={"Retry-After": "5"}) from None
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()


def going() -> ApiError:
    """The server takes no more requests."""
    return ApiError(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "10", "Connection": "close"})
