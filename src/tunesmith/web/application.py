"""The addresses of the pages, and what answers each.

    /                        the runs of the folder
    /runs/NAME               one run; /parts?names=... some of its parts anew; /stream what happens; /report its report.html
    /runs/NAME/answers       rows with two arms' answers
    /runs/NAME/chat          ask its models, where a server of them is known
    /compare?a=NAME&b=NAME   two runs
    /stream                  when the list changes
    /static/                 style and script

All but the form of the chat page only read, and a run never notices. Work on files is done in threads, so that a large run
holds up nobody else's page.
"""

import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tunesmith.errors import MissingPackage, TunesmithError
from tunesmith.web import pages
from tunesmith.web.answers import ROWS, SHOWS, Show, answers_of
from tunesmith.web.compare import compare
from tunesmith.web.life import Feed
from tunesmith.web.run_page import RunPage
from tunesmith.web.runs import FEEDS, Shelf
from tunesmith.web.security import Guard
from tunesmith.web.stream import LISTENERS, Pace, as_response, list_stream, run_stream

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
OF_A_REPORT = "default-src 'none'; style-src 'unsafe-inline'; sandbox"  # report.html has its style within, and no script


class Talk(Protocol):
    """The page on which models are asked (``chat_page.py``)."""

    async def page(self, feed: Feed, name: str, request: Request) -> Response:
        """The form, or with what was asked and answered."""
        ...


class Site:
    """The pages of a folder.

    Args:
        talk: the chat page; None: there is none.
        pace: of the streams.
        is_closing: whether the server ends, and the streams with it.
    """

    def __init__(self, shelf: Shelf, talk: Talk | None, pace: Pace, is_closing: Callable[[], bool]):
        self._shelf, self._talk, self._pace, self._is_closing = shelf, talk, pace, is_closing
        self._pages: dict[str, RunPage] = {}
        self._listeners = 0

    def routes(self) -> list[Route | Mount]:
        """What is answered by what."""
        return [
            Route("/", self.list),
            Route("/stream", self.list_stream),
            Route("/compare", self.compare),
            Route("/runs/{name}", self.run),
            Route("/runs/{name}/parts", self.parts),
            Route("/runs/{name}/stream", self.run_stream),
            Route("/runs/{name}/answers", self.answers),
            Route("/runs/{name}/report", self.report),
            Route("/runs/{name}/chat", self.chat, methods=["GET", "POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    def list(self, request: Request) -> Response:
        """The runs of the folder."""
        standings, found = self._shelf.standings(), self._shelf.compared()
        entries = {entry.name: entry for entry in found.runs}
        names = [
            *reversed([name for name in entries if name in standings]),
            *(name for name in standings if name not in entries),
        ]
        broken = {Path(other.path).name: other.reason for other in found.others}
        values = {"names": names, "entries": entries, "standings": standings, "broken": broken}
        template = "list_rows.html.j2" if "names" in request.query_params else "list.html.j2"
        return HTMLResponse(pages.fill(template, folder=str(self._shelf.folder), **values))

    def run(self, request: Request) -> Response:
        """The page of a run."""
        return HTMLResponse(self._page(request).whole())

    def parts(self, request: Request) -> Response:
        """Some parts of the page of a run."""
        return HTMLResponse(self._page(request).parts(request.query_params.get("names", "").split(",")))

    def answers(self, request: Request) -> Response:
        """Rows of a run with two arms' answers."""
        query, feed = request.query_params, self._feed(request)
        asked, first = query.get("show", SHOWS[0]), query.get("first", "0")
        kinds: dict[str, Show] = {kind: kind for kind in SHOWS}
        show = kinds.get(asked, SHOWS[0])
        place = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0
        found = answers_of(feed.run, show, place, query.get("ours"), query.get("theirs"))
        return HTMLResponse(
            pages.fill("answers.html.j2", name=request.path_params["name"], found=found, shows=SHOWS, a_page=ROWS)
        )

    def report(self, request: Request) -> Response:
        """The report that the run wrote."""
        file = self._feed(request).run.report_file
        if not file.exists():
            raise HTTPException(404, "this run has no report yet")
        return Response(file.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": OF_A_REPORT})

    def compare(self, request: Request) -> Response:
        """Two runs beside each other."""
        names = list(self._shelf.directories())
        first, second = request.query_params.get("a", ""), request.query_params.get("b", "")
        if first not in names or second not in names:
            raise HTTPException(404, "name two runs of this folder")
        found = compare(self._shelf, first, second)
        return HTMLResponse(pages.fill("compare.html.j2", first=first, second=second, found=found, names=names))

    async def chat(self, request: Request) -> Response:
        """Ask the models of a run."""
        if self._talk is None:
            raise HTTPException(404, "no server of models is known; start this one with --serve URL")
        return await self._talk.page(self._feed(request), request.path_params["name"], request)

    async def run_stream(self, request: Request) -> Response:
        """What happens in a run."""
        position = request.headers.get("last-event-id") or request.query_params.get("from", "")
        return self._listen(run_stream(self._feed(request), position, self._pace, self._until(request)))

    async def list_stream(self, request: Request) -> Response:
        """When the list changes."""
        return self._listen(list_stream(self._shelf, self._pace, self._until(request)))

    def _until(self, request: Request) -> Callable[[], Awaitable[bool]]:
        """Whether nobody listens to a stream any more."""

        async def is_gone() -> bool:
            return self._is_closing() or await request.is_disconnected()

        return is_gone

    def _listen(self, messages: AsyncIterator[str]) -> Response:
        if self._listeners >= LISTENERS:
            raise HTTPException(503, "too many pages are open", headers={"Retry-After": "10"})

        async def counted() -> AsyncIterator[str]:
            self._listeners += 1
            try:
                async for message in messages:
                    yield message
            finally:
                self._listeners -= 1

        return as_response(counted())

    def _feed(self, request: Request) -> Feed:
        name = request.path_params["name"]
        try:
            return self._shelf.feed(name)
        except KeyError:
            raise HTTPException(404, f"no run {name} in {self._shelf.folder}") from None

    def _page(self, request: Request) -> RunPage:
        name, feed = request.path_params["name"], self._feed(request)
        page = self._pages.get(name)
        if page is None or page.feed is not feed:
            if len(self._pages) >= FEEDS:
                self._pages.clear()
            page = self._pages[name] = RunPage(name, feed, self._talk is not None)
        return page


def application(
    folder: Path,
    *,
    key: str | None = None,
    serve: str | None = None,
    serve_key: str | None = None,
    pace: Pace | None = None,
    is_closing: Callable[[], bool] = lambda: False,
) -> Guard:
    """The pages of a folder as an application.

    Args:
        folder: that holds run directories, or is one.
        key: that is asked for; None: loopback names alone are answered.
        serve: address of a running ``tunesmith serve`` (up to ``/v1``), for the chat page; None for none.
        serve_key: that it asks for.
        pace: of the streams.
        is_closing: whether the server ends.

    Raises:
        RunError: no such folder, or an address that is none.
        MissingPackage: a chat page without the extra train.
    """
    talk = None if serve is None else _talk(serve, serve_key)
    handlers: dict[int | type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        HTTPException: _of_framework,
        TunesmithError: _ours,
        Exception: _fault,
    }
    routes = Site(Shelf(folder), talk, pace or Pace(), is_closing).routes()
    return Guard(Starlette(routes=routes, exception_handlers=handlers), key)


def _talk(serve: str, key: str | None) -> Talk:
    """The chat page. It renders prompts, for which transformers is imported; the other pages need none of it."""
    try:
        return importlib.import_module("tunesmith.web.chat_page").ChatPage(serve, key)
    except ModuleNotFoundError as error:
        raise MissingPackage(f"--serve needs {error.name}", "run: pip install 'tunesmith[train]'") from error


async def _of_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = error.detail or HTTPStatus(error.status_code).phrase
    return _told(request, error.status_code, words, dict(error.headers or {}))


async def _ours(request: Request, error: Exception) -> Response:
    return _told(request, 500, str(error), {})


async def _fault(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _told(request, 500, "this page failed; the log of the server has the reason", {})


def _told(request: Request, status: int, words: str, headers: dict[str, str]) -> Response:
    """What is wrong, as a page where a page was asked for."""
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse(f"{words}\n", status, headers)
    return HTMLResponse(pages.fill("wrong.html.j2", status=status, words=words), status, headers)
