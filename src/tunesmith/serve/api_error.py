"""Errors as OpenAI's API writes them: ``{"error": {"message", "type", "param", "code"}}`` with a status.

Everything that goes wrong on the way to an answer leaves in this shape, an unknown path and our own faults too: the official
client reads it and raises the class of the status. A fault of ours says nothing of its cause to the client; the log has it.

409 is never used: the official client tries it again, as it does 408, 429 and everything from 500.

Source: openai-python ``_exceptions.py``, ``_base_client.py`` (``_should_retry``).
"""

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.errors import first_line
from tunesmith.serve.storage import is_disk

logger = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client did wrong, or why there is no answer now.

    Args:
        status: of HTTP.
        message: what was found and what was expected, and where.
        code: for programs, such as ``model_not_found``.
        param: the field of the request that it is about.
        headers: more headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        """As it is written, here and in the middle of a stream."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As an answer."""
        return JSONResponse(self.body, self.status, self.headers)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _of_framework(request: Request, error: Exception) -> Response:
    """An unknown path, a method that it does not know, a body that is none."""
    assert isinstance(error, HTTPException)
    said = error.detail or HTTPStatus(error.status_code).phrase
    if error.status_code == 404:
        said = f"Unknown request URL: {request.method} {request.url.path}"
    code = "unknown_url" if error.status_code == 404 else None
    return ApiError(error.status_code, said, code, headers=error.headers).response()


async def _fault(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ApiError(500, "the server failed on this request; its log has the reason", "internal_error").response()


async def _disk(request: Request, error: Exception) -> Response:
    """No room, or a store that cannot be opened: the client tries 503 again."""
    if not is_disk(error):
        return await _fault(request, error)
    logger.warning(f"{request.method} {request.url.path}: {first_line(error)}")
    said = "this server cannot write to its disk now; its log has the reason"
    return ApiError(503, said, "disk_full", headers={"Retry-After": "10"}).response()


HANDLERS: dict[int | type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _ours,
    HTTPException: _of_framework,
    OSError: _disk,
    sqlite3.OperationalError: _disk,
    Exception: _fault,
}
