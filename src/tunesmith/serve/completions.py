"""The route of a completion, chat or text: from the body to the last byte.

All that a request holds (its place in the house, the model, the slots) is held by blocks around one coroutine, and that
coroutine is cancelled when the client goes; so nothing is left behind, however it ends.

A stream waits for the first item before it sends its head, for as long as it would be silent anyway: what goes wrong by then
has a status of its own. Later it is an event with the error, and no ``[DONE]``.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from difflib import get_close_matches

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tunesmith.serve.answers import Answers, Item
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.asking import Borrowed, Models, Served
from tunesmith.serve.body import fields_of, read_body
from tunesmith.serve.event_stream import DONE, PING, ClientGone, begin_events, end_events, event, send_event, unless_gone
from tunesmith.serve.fields import Fields
from tunesmith.serve.limits import House
from tunesmith.serve.request import Wanted
from tunesmith.serve.telemetry import Telemetry, Visit, visit_of

SMALL = 32 * 1024  # bytes of a body that is read and rendered where it comes; larger ones would hold up the streams of others

Read = Callable[[Fields, Served, int], Wanted]
Answered = Callable[[Fields, Wanted, Served, Visit], None]


def json_response(value: object, status: int = 200) -> Response:
    """An answer of JSON."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def no_such_model(models: Models, name: str) -> ApiError:
    """404, with the names that are near."""
    names = [served.name for served in models.served()]
    near = get_close_matches(name, names, n=3, cutoff=0.5) or names
    listed = ", ".join(f"'{near_name}'" for near_name in near[:8])
    said = f"The model '{name:.80}' does not exist or you do not have access to it. There is: {listed or 'none'}."
    return ApiError(404, said, "model_not_found", "model")


@asynccontextmanager
async def borrowed_model(models: Models, name: str) -> AsyncIterator[Borrowed]:
    """A model until the block ends.

    Raises:
        ApiError: no model of that name (404).
    """
    lent = models.borrow(name)
    try:
        borrowed = await lent.__aenter__()
    except KeyError:
        raise no_such_model(models, name) from None
    try:
        yield borrowed
    finally:
        await lent.__aexit__(None, None, None)


class CompletionRoute:
    """One of the two routes, as an ASGI application.

    Args:
        operation: ``chat`` or ``text_completion``, for the figures.
        read: its body.
        models: that can be asked.
        house, telemetry: of the server.
        answered: is told of every request that was answered whole.
    """

    def __init__(
        self,
        operation: str,
        read: Read,
        models: Models,
        house: House,
        telemetry: Telemetry,
        answered: Answered | None = None,
    ):
        self._operation, self._read, self._models = operation, read, models
        self._house, self._telemetry, self._answered = house, telemetry, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, by ASGI."""
        visit = visit_of(Request(scope))
        with self._house.admitted():
            body = await read_body(Request(scope, receive), self._house.limits)
            fields = fields_of(body) if len(body) <= SMALL else await asyncio.to_thread(fields_of, body)
            name = fields.needed_text("model")
            async with borrowed_model(self._models, name) as borrowed:
                visit.model, visit.operation = borrowed.served.name, self._operation
                try:
                    wanted, last = await unless_gone(receive, self._answer(fields, len(body), borrowed, visit, send))
                except ClientGone:
                    visit.error = "client_gone"
                    return
                if isinstance(last, Response):
                    await last(scope, receive, send)
                else:
                    await send_event(send, last)
                    await end_events(send)
                if self._answered is not None and not visit.error:
                    self._answered(fields, wanted, borrowed.served, visit)

    async def _answer(
        self, fields: Fields, size: int, borrowed: Borrowed, visit: Visit, send: Send
    ) -> tuple[Wanted, Response | bytes]:
        """Ask, and send all but the last, which is returned: when it is sent, nothing is held any more."""
        served, choices = borrowed.served, self._house.limits.choices
        if size <= SMALL and "response_format" not in fields:
            wanted = self._read(fields, served, choices)
        else:  # long to encode, or a schema that may be long to compile
            wanted = await asyncio.to_thread(self._read, fields, served, choices)
        async with (
            Answers(borrowed, wanted.asks, self._house, visit, self._telemetry) as answers,
            aclosing(answers.items(self._house.limits.ping_s)) as items,
        ):
            if wanted.generation.stream:
                return wanted, await self._stream(wanted, items, visit, send)
            async for item in items:
                if item is not None:
                    for _ in wanted.reply.take(*item):
                        continue
        return wanted, json_response(wanted.reply.whole())

    async def _stream(self, wanted: Wanted, items: AsyncIterator[Item | None], visit: Visit, send: Send) -> bytes:
        """Send what comes; what the stream ends with."""
        first = await anext(items)
        await begin_events(send)
        try:
            await send_event(send, self._events(wanted, first))
            async for item in items:
                await send_event(send, self._events(wanted, item))
        except ApiError as error:
            visit.error = error.code or str(error.status)
            return event(error.body)
        return (event(wanted.reply.usage_chunk()) if wanted.generation.include_usage else b"") + DONE

    def _events(self, wanted: Wanted, item: Item | None) -> bytes:
        return PING if item is None else b"".join(map(event, wanted.reply.take(*item)))
