"""What happens in a run, as server-sent events.

    id: fe01-1a2b3c-48211        device, inode and byte of events.jsonl behind the line
    event: metric                the kind of the event; also state, reset and heartbeat
    data: {"at": ..., "stage": "train", "kind": "metric", "step": 12, ...}

An id is a place in the file, so to go on is to seek, whichever server is asked, and nothing is kept of who listens. A file that
was replaced or cut, or a listener that is far behind, is told ``reset``: what it shows is to be fetched anew. A line without
its end waits. A figure that is no finite number is null, as in the file. ``state`` is how the run stands (a run that was killed
writes no last line, its lock says it), at the beginning and when it changes; ``heartbeat`` says that nothing happens.

Refused: a watcher of the file system (another dependency, and none over a network's); a thread a listener.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from tunesmith.errors import RunError
from tunesmith.rundir.events import LineReader
from tunesmith.rundir.records.events import parse_event
from tunesmith.web.life import Feed, place_reader, position_of
from tunesmith.web.runs import Shelf

BEHIND = 1 << 20  # bytes, from which a listener fetches anew instead of hearing each line
LISTENERS = 100  # at a time


@dataclass(frozen=True)
class Pace:
    """How often a stream looks, in seconds; another one in tests.

    Attributes:
        look: between two looks at the file.
        state: between two looks at who writes.
        heartbeat: of silence before it says that it lives.
        retry: that a browser waits before it connects again.
    """

    look: float = 0.4
    state: float = 1.0
    heartbeat: float = 15.0
    retry: float = 1.0


async def run_stream(feed: Feed, position: str, pace: Pace, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
    """The events of a run behind a position.

    Args:
        position: the last id that the listener has; empty: all from the beginning.
        is_gone: whether the listener left.
    """
    yield f"retry: {round(1000 * pace.retry)}\n\n"
    reader = LineReader(feed.run.events_file)
    if position and not place_reader(reader, position):
        await run_in_threadpool(reader.skip)
        yield _message("reset", {"reason": "an id that is none"}, position_of(reader))
    state, looked, spoke = "", 0.0, time.monotonic()
    while not await is_gone():
        for message in await run_in_threadpool(_news, reader):
            spoke = time.monotonic()
            yield message
        now = time.monotonic()
        if now - looked >= pace.state:
            looked, before = now, state
            state = await run_in_threadpool(feed.standing)
            if state != before:
                yield _message("state", {"state": state}, position_of(reader))
        if now - spoke >= pace.heartbeat:
            spoke = now
            yield _message("heartbeat", {}, position_of(reader))
        await asyncio.sleep(pace.look)


async def list_stream(shelf: Shelf, pace: Pace, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
    """A message whenever a run of the folder comes, goes, or stands otherwise."""
    yield f"retry: {round(1000 * pace.retry)}\n\n"
    known, spoke = None, time.monotonic()
    while not await is_gone():
        state = (await run_in_threadpool(shelf.standings), await run_in_threadpool(shelf.state, ("stages.json",)))
        if known is not None and state != known:
            spoke = time.monotonic()
            yield _message("runs", {})
        known = state
        if time.monotonic() - spoke >= pace.heartbeat:
            spoke = time.monotonic()
            yield _message("heartbeat", {})
        await asyncio.sleep(pace.state)


def as_response(messages: AsyncIterator[str]) -> StreamingResponse:
    """An answer that nobody between here and the browser keeps back."""
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    return StreamingResponse(messages, media_type="text/event-stream; charset=utf-8", headers=headers)


def _news(reader: LineReader) -> list[str]:
    """Messages of the lines that came since the last look."""
    is_anew, lines = reader.new(BEHIND)
    if is_anew or sum(map(len, lines)) >= BEHIND // 2:
        reader.skip()
        return [_message("reset", {"reason": "another file" if is_anew else "far behind"}, position_of(reader))]
    end = reader.offset
    place = end - sum(len(line) + 1 for line in lines)
    device, inode = reader.file or (0, 0)
    messages: list[str] = []
    for line in lines:
        place += len(line) + 1
        try:
            event = parse_event(line, "")
        except RunError:
            continue  # the page says that a line is damaged
        name = event.kind.replace(" ", "-")
        messages.append(_message(name, event.to_json(), f"{device:x}-{inode:x}-{place}"))
    return messages


def _message(name: str, data: object, position: str = "") -> str:
    head = f"id: {position}\n" if position else ""
    return f"{head}event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
