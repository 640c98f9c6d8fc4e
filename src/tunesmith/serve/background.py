"""Work that goes on beside the server for as long as a block does; where it ends before that, its fault is said."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

logger = logging.getLogger(__name__)


@asynccontextmanager
async def at_work(name: str, *work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Do some work until the block ends.

    Args:
        name: what it is, for the log.
        work: without an end.
    """

    def say_fault(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(f"serve: {name} broke off", exc_info=error)

    tasks = [asyncio.create_task(one) for one in work]
    for task in tasks:
        task.add_done_callback(say_fault)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
