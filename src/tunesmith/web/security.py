"""Who may ask, and what a browser may do with the answer.

A page on loopback is within reach of every site that is open in the same browser. So: the ``Host`` must be a loopback name (a
site that points its own name here, DNS rebinding, comes with its own), an ``Origin`` must be ours, a request that the browser
calls cross-site is answered only where it is a link that somebody followed, and what changes anything is a POST with our
``Origin``. On any other address a key is asked for: it comes by a form, and stays as a cookie that no script reads and that no
other site sends (an ``EventSource`` cannot send a header). The cookie is made from the key, so it outlives a restart.

A browser is told to load nothing but this server's own script, style and pictures, and to run nothing that stands in a page:
texts of data and models are escaped, and would do nothing if they were not.

Refused: a key in the address (it stays in histories and logs); TLS (a tunnel or a proxy does it better).
"""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith import hardware
from tunesmith.web import pages

COOKIE, ENTER = "tunesmith-web", "/enter"
OPEN = ("/static/",)  # paths that need no key: the form has a style too
LARGEST_FORM = 10_000  # bytes
PAUSE = 0.5  # seconds after a wrong key, for those who try them all
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none, a browser sends a form of ours with the origin null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Stands before the application: refuses what is not ours to answer, and sets the headers of every answer.

    Args:
        app: what is behind it.
        key: that is asked for; None: loopback names alone are answered.
    """

    def __init__(self, app: ASGIApp, key: str | None):
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        app: ASGIApp = self._app if refusal is None else refusal
        if refusal is None and self._key is not None and not scope["path"].startswith(OPEN):
            app = await self._behind_key(Request(scope, receive), self._key)
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        """What is wrong with where a request comes from; None for nothing."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._key is None and not is_loopback(host):
            return _refused(f"this server is asked as {host or 'nothing'}; it answers to localhost alone")
        if origin is not None and origin.partition("://")[2] != host:
            return _refused("another site may not ask this server")
        if origin is None and method not in ("GET", "HEAD"):
            return _refused("a request that asks for more than a page names its origin")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return _refused("another site may not load anything of this server")
        return None

    async def _behind_key(self, request: Request, key: str) -> ASGIApp:
        """The application for who has the key, the form for who has not."""
        token = token_of(key)
        if request.url.path == ENTER and request.method == "POST":
            given = parse_qs((await _body(request)).decode("utf-8", "replace")).get("key", [""])[0]
            if not _same(given, key):
                await asyncio.sleep(PAUSE)
                return HTMLResponse(pages.fill("enter.html.j2", is_wrong=True), 403)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
            return answer
        bearer = request.headers.get("authorization", "")
        if _same(_cookie(request.headers), token) or _same(bearer, f"Bearer {key}"):
            return self._app
        return HTMLResponse(pages.fill("enter.html.j2", is_wrong=False), 401)


def is_loopback(host: str) -> bool:
    """Whether a ``Host`` is a name of this machine that no other machine can have, at any port (a tunnel has another)."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and "@" not in host and hardware.is_loopback(name)


def token_of(key: str) -> str:
    """What the cookie holds: it tells who has the key, and is not the key."""
    return hmac.new(key.encode(), b"tunesmith web", hashlib.sha256).hexdigest()


def _refused(reason: str) -> Response:
    return PlainTextResponse(f"refused: {reason}\n", 403)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _cookie(headers: Mapping[str, str]) -> str:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""


async def _body(request: Request) -> bytes:
    """The body of a small form; what is beyond is not read."""
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > LARGEST_FORM:
            break
    return body[:LARGEST_FORM]
