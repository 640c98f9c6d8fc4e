"""The body of a request: not longer than allowed, in time, and JSON in the strict reading of the rest of the program.

The length is looked at before a byte is read where the client says it, and counted while reading where it does not: the engine
behind has no bound of its own and tokenises 20 MiB for two minutes before it finds them too long. What is somewhat too long is
read to its end and dropped before it is refused, because a client that still writes when the connection closes sees a broken
pipe and never the reason.
"""

import asyncio

from pydantic import JsonValue
from starlette.requests import ClientDisconnect, Request

from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import loads
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.fields import Fields
from tunesmith.serve.limits import Limits

DROPPED = 16  # times the limit that is read and dropped


def length_of(request: Request) -> int:
    """Bytes that a body will have, as it says; 0 where it does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0


async def read_body(request: Request, limits: Limits) -> bytes:
    """All bytes.

    Raises:
        ApiError: too many of them (413), or they do not come (408).
    """
    if length_of(request) > DROPPED * limits.body:
        raise _too_large(limits.body)
    body, length = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                length += len(part)
                if length <= limits.body:
                    body += part
                elif length > DROPPED * limits.body:
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not come in {limits.body_s:g} seconds", "request_timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away before its request was whole", "client_gone") from None
    if length > limits.body:
        raise _too_large(limits.body)
    return bytes(body)


def json_object(body: bytes) -> dict[str, JsonValue]:
    """The object that a body is.

    Raises:
        ApiError: it is not JSON, or no object.
    """
    value = value_of(body)
    if not isinstance(value, dict):
        raise ApiError(400, "The body of a request is one JSON object.", "invalid_json")
    return value


def fields_of(body: bytes) -> Fields:
    """The fields of a body; raises as ``json_object``.

    Raises:
        ApiError: it is not JSON, or no object.
    """
    return Fields(json_object(body))


def value_of(body: bytes) -> JsonValue:
    """A body as JSON.

    Raises:
        ApiError: it is not JSON (read strictly: no key twice, no NaN, no nesting past all measure).
    """
    try:
        return loads(body)
    except RowError as bad:
        said = f"We could not parse the JSON body of your request: {bad.message:.300}"
        raise ApiError(400, said, "invalid_json") from None


def _too_large(most: int) -> ApiError:
    said = f"The body of a request has at most {most:,} bytes."
    return ApiError(413, said, "request_too_large", headers={"Connection": "close"})
