"""The door: every request gets a number, is let in or turned away, and leaves a line in the log.

Around the whole application, below no framework's middleware: nothing that a route does, nor that it fails to do, goes past it.
In this order: the ``Host`` of a server on loopback (a page of another site that rebinds its name to 127.0.0.1 is turned away),
``Origin`` (a browser sends it, and no page may ask unless its origin was named), the key, the rate.

``/health`` is open to whoever reaches the address; everything else wants the key where there is one.
"""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.api_error import ApiError
from tunesmith.serve.keys import Keys, Rate
from tunesmith.serve.limits import House, going
from tunesmith.serve.telemetry import VISIT, Telemetry, Visit

logger = logging.getLogger(__name__)
OPEN = ("/health",)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may come in.

    Attributes:
        keys: that are known; None: no key is asked for.
        rate: of each key; None: any.
        hosts: names that a request's ``Host`` may have, without the port; None: any.
        origins: of pages that may ask, ``*`` for all.
    """

    keys: Keys | None = None
    rate: Rate | None = None
    hosts: frozenset[str] | None = None
    origins: Sequence[str] = ()


class Guard:
    """The door of an application."""

    def __init__(self, app: ASGIApp, access: Access, house: House, telemetry: Telemetry):
        self._app, self._access, self._house, self._telemetry = app, access, house, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, by ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(f"req_{secrets.token_hex(12)}")
        scope[VISIT] = visit
        headers, status = Headers(scope=scope), 0
        origin = headers.get("origin")

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                outgoing = MutableHeaders(scope=message)
                outgoing["x-request-id"] = visit.id
                if origin is not None and self._may_ask(origin):
                    outgoing["Access-Control-Allow-Origin"] = origin
                    outgoing["Access-Control-Expose-Headers"] = "x-request-id, Retry-After"
                    outgoing.add_vary_header("Origin")
            await send(message)

        try:
            answer = self._turned_away(scope, headers, origin, visit)
            await (answer or self._app)(scope, receive, named)
        finally:
            self._telemetry.left(visit, status or 499)  # 499: the client was gone before there was a status
            self._log(scope, visit, status or 499)

    def _turned_away(self, scope: Scope, headers: Headers, origin: str | None, visit: Visit) -> Response | None:
        """What is said to who may not come in; None: come in."""
        try:
            self._check_host(headers.get("host", ""))
            if origin is not None and not self._may_ask(origin):
                said = f"Requests of pages of {origin!r:.80} are not allowed; the server was started without --cors for it."
                raise ApiError(403, said, "origin_not_allowed")
            if origin is not None and scope["method"] == "OPTIONS":
                return _preflight()
            if scope["path"] in OPEN:
                return None
            if self._access.keys is not None:
                visit.key = self._access.keys.name_of(headers.get("authorization"))
            if self._house.leaving:
                raise going()
            if self._access.rate is not None:
                self._access.rate.take(visit.key)
        except ApiError as error:
            return error.response()
        return None

    def _check_host(self, host: str) -> None:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self._access.hosts is not None and name.lower().rstrip(".") not in self._access.hosts:
            said = f"Unknown host {host!r:.80}: this server answers to {', '.join(sorted(self._access.hosts))}."
            raise ApiError(403, said, "host_not_allowed")

    def _may_ask(self, origin: str) -> bool:
        return "*" in self._access.origins or origin in self._access.origins

    def _log(self, scope: Scope, visit: Visit, status: int) -> None:
        tokens = (
            f" {visit.prompt_tokens} ({visit.cached_tokens} cached) + {visit.new_tokens} tokens" if visit.new_tokens else ""
        )
        whose = "".join(f" {part}" for part in (visit.key, visit.model, visit.error) if part)
        path = f"{scope['path']!a:.120}"[1:-1]  # a path may hold line breaks
        logger.info(f"{visit.id} {scope['method']} {path} {status} {visit.seconds:.3f} s{whose}{tokens}")


def _preflight() -> Response:
    """What a browser asks before it asks."""
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": "*, Authorization",
            "Access-Control-Max-Age": "600",
        },
    )
