"""Server-sent events, and work that ends when its client goes.

ASGI says that a client has gone by a message that somebody has to wait for. Both ways of answering wait for it beside their
work, and cancel the work when it comes: the slot is free at once and not when the answer would have ended.

Source: WHATWG HTML, "Server-sent events"; OpenAI's ``data: [DONE]``.
"""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import orjson
from starlette.types import Receive, Send

T = TypeVar("T")
PING = b": ping\n\n"  # a comment, which clients skip; so no proxy between thinks the connection dead
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy hands on what it has
]


class ClientGone(Exception):
    """Nobody is there to read the answer."""


def event(value: object) -> bytes:
    """One event that holds JSON."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def begin_events(send: Send) -> None:
    """The head of a response of events."""
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})


async def send_event(send: Send, text: bytes) -> None:
    """One event, or several."""
    await send({"type": "http.response.body", "body": text, "more_body": True})


async def end_events(send: Send) -> None:
    """The end of the response."""
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes. The request's body has been read.

    Raises:
        ClientGone: it went.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
