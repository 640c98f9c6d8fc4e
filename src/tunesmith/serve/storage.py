"""A disk that is full or away for a while: what serves waits and goes on, and says so once.

Who looks at something again and again must not end with the first look that fails: the server would go on answering and take
jobs that nobody runs.
"""

import asyncio
import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable

from tunesmith.errors import first_line

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_disk(error: Exception) -> bool:
    """Whether an error is of the disk, and may be gone when there is room again."""
    return isinstance(error, sqlite3.OperationalError) or (isinstance(error, OSError) and error.errno in FULL)


async def look_again(look: Callable[[], Awaitable[None]], seconds: float, who: str) -> None:
    """Look at something until the task is cancelled; a look that the disk spoils is one of many.

    Args:
        seconds: between two looks.
        who: for the log.
    """
    said = ""
    while True:
        try:
            await look()
            said = ""
        except (sqlite3.OperationalError, OSError) as error:
            line = first_line(error)
            if line != said:
                logger.warning(f"{who}: {line}; it is tried again every {seconds:g} s")
            said = line
        await asyncio.sleep(seconds)
