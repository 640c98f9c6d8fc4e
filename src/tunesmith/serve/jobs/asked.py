"""What every route reads of a request: its body as JSON, a page of a list, whose it is."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import JsonValue
from starlette.requests import ClientDisconnect, Request

from tunesmith.serve.api_error import ApiError
from tunesmith.serve.body import value_of

T = TypeVar("T")
MOST_OF_BODY = 1 << 20  # bytes of a request that is no file
PATIENCE = 60.0  # seconds between two pieces of a body
RETRY = "x-stainless-retry-count"  # how often the official client has tried it before
ID = re.compile(r"[A-Za-z0-9._:-]{1,256}")


@dataclass(frozen=True)
class Body:
    """A body that was read.

    Attributes:
        value: as JSON; an empty object where there is none.
        sha256: of its bytes.
    """

    value: JsonValue
    sha256: str


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """A body as it comes.

    Raises:
        ApiError: 400, it broke off, or nothing of it came for too long.
    """
    pieces = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise ApiError(400, f"nothing of the body came for {PATIENCE:g} seconds", "invalid_request") from error
        except ClientDisconnect as error:
            raise ApiError(400, "the client went away in the middle of the body", "invalid_request") from error
        yield piece


def length_of(request: Request) -> int:
    """Bytes that a body will have, as it says; 0 where it does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0


async def json_body(request: Request) -> Body:
    """Read a body.

    Raises:
        ApiError: 413, too large; 400, no JSON, or a key twice.
    """
    content = bytearray()
    async for piece in body_of(request):
        content += piece
        if len(content) > MOST_OF_BODY:
            raise ApiError(413, f"the body has more than {MOST_OF_BODY:,} bytes", "request_too_large")
    return Body(value_of(bytes(content or b"{}")), hashlib.sha256(content).hexdigest())


def is_retry(request: Request) -> bool:
    """Whether the client says that it tries this again."""
    return request.headers.get(RETRY, "0") not in ("", "0")


def id_in_path(request: Request, name: str = "id") -> str:
    """An id of the path; one that cannot be any is not there."""
    value = request.path_params[name]
    return value if ID.fullmatch(value) else ""


def limit_of(request: Request, default: int, most: int) -> int:
    """``limit`` of a list.

    Raises:
        ApiError: 400, no number of the range.
    """
    text = request.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= most):
        raise ApiError(
            400, f"limit: expected a whole number from 1 to {most:,}, found {text[:40]!r}", "invalid_value", param="limit"
        )
    return int(text[:9])


def after_of(request: Request, find: Callable[[str], T | None]) -> T | None:
    """The entry that a page begins behind; None for the first page.

    Raises:
        ApiError: 400, no such entry: an empty page would look like the end of the list.
    """
    after = request.query_params.get("after")
    if not after:
        return None
    entry = find(after) if ID.fullmatch(after) else None
    if entry is None:
        raise ApiError(400, f"after: no entry of this list has the id {after[:80]!r}", "invalid_value", param="after")
    return entry
