"""The answers to one request, each in a slot of its own, as they come.

Each answer is a task that fills one queue, and whoever reads the queue writes to the client. So a client that reads slowly
holds no slot, and one that goes away ends the tasks, which close the engine's iterators, which free the slots. The queue needs
no bound: an answer has at most as many pieces as tokens.

The times of ``Limits`` are kept here: to the first piece and to the last. What ends an answer too early is an error of the
request; nothing that was cut off looks as if it had ended.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType

from tunesmith.serve.api_error import ApiError
from tunesmith.serve.asking import Ask, Borrowed, End, EngineGone, EngineStarting, Piece
from tunesmith.serve.limits import House
from tunesmith.serve.telemetry import Telemetry, Visit

Item = tuple[int, Piece | End]


class Answers:
    """The answers to one request; an asynchronous context manager that ends what is under way when it is left.

    Args:
        borrowed: the model.
        asks: what it is asked.
        house: whose slots they take.
        visit, telemetry: where their figures go.
    """

    def __init__(self, borrowed: Borrowed, asks: Sequence[Ask], house: House, visit: Visit, telemetry: Telemetry):
        self._borrowed, self._asks, self._house = borrowed, asks, house
        self._visit, self._telemetry = visit, telemetry
        self._come: asyncio.Queue[Item | None] = asyncio.Queue()  # None: a task has ended
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Answers":
        self._tasks = [asyncio.create_task(self._answer(number, ask)) for number, ask in enumerate(self._asks)]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._come.put_nowait(None))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def items(self, quiet_s: float) -> AsyncGenerator[Item | None, None]:
        """Pieces and ends with the number of their answer, or None each time that nothing has come for ``quiet_s`` seconds.

        Raises:
            ApiError: no slot, no time, or no engine.
        """
        ended = 0
        while ended < len(self._tasks):
            try:
                async with asyncio.timeout(quiet_s):
                    item = await self._come.get()
            except TimeoutError:
                yield None
                continue
            if item is not None:
                yield item
                continue
            ended += 1
            for task in self._tasks:
                if task.done():
                    task.result()  # raises what ended it

    async def _answer(self, number: int, ask: Ask) -> None:
        limits, arrived = self._house.limits, time.perf_counter()
        async with self._house.slot():
            started = time.perf_counter()
            self._telemetry.queued(self._visit, started - arrived)
            first, kind = started, "first token"
            try:
                async with asyncio.timeout(limits.first_token_s) as deadline, aclosing(self._borrowed.answer(ask)) as pieces:
                    async for piece in pieces:
                        if kind == "first token":
                            first, kind = time.perf_counter(), "answer"
                            deadline.reschedule(asyncio.get_running_loop().time() + limits.whole_s - (first - started))
                            self._telemetry.began(self._visit)
                        self._come.put_nowait((number, piece))
                        if isinstance(piece, End):
                            self._telemetry.ended(self._visit, piece, time.perf_counter() - first)
                            return
            except TimeoutError:
                seconds = limits.first_token_s if kind == "first token" else limits.whole_s
                said = f"the {kind} took longer than {seconds:g} seconds"
                raise ApiError(504, said, "timeout", headers={"x-should-retry": "false"}) from None
            except EngineStarting as error:
                headers = {"Retry-After": str(max(1, round(error.seconds)))}
                raise ApiError(503, f"the engine is being started again: {error}", "engine_starting", headers=headers) from None
            except EngineGone as error:
                raise ApiError(500, f"the engine broke off: {error}", "engine_gone") from None
        raise ApiError(500, "the engine ended without a word of how", "engine_gone")
