"""What engines say over HTTP, llama.cpp and vLLM alike: the lines of a stream, and the reason of an error.

Refused: the client's own ``aiter_lines``, which ends a line at U+2028 and its kin too. These stand as they are in the JSON
of an answer that holds them, and an event would be torn in two. It takes three times as long as well.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator

LONGEST = 200  # characters of a reason


async def lines_of(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, as they become whole."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line


def reason_of(body: bytes | str) -> str:
    """What an error says, without the request that it may repeat."""
    try:
        error = json.loads(body)
    except ValueError:
        return "it did not say why"
    if isinstance(error, dict):
        error = error.get("error", error)
    return str(error.get("message", error) if isinstance(error, dict) else error)[:LONGEST]
