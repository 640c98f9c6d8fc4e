"""The server's routes behind its door.

What OpenAI's API has and this server has not is refused by its own name, since a bare 404 looks like a wrong address.

Refused: FastAPI, whose models of requests would be a second description of what ``request.py`` reads, and whose documents load
scripts from another host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tunesmith.serve.api_error import HANDLERS, ApiError
from tunesmith.serve.asking import Models
from tunesmith.serve.completions import Answered, CompletionRoute, json_response
from tunesmith.serve.guard import Access, Guard
from tunesmith.serve.limits import House, Limits
from tunesmith.serve.model_routes import model_routes
from tunesmith.serve.request import chat_request, text_request
from tunesmith.serve.telemetry import Telemetry

ELSEWHERE = {  # begin of a path of OpenAI's API -> what to do in its place
    "/v1/embeddings": "its models write text and embed none; run a server of embeddings beside it",
    "/v1/responses": "use /v1/chat/completions, which holds no conversation between two requests",
    "/v1/messages": "that is Anthropic's API; use /v1/chat/completions",
    "/v1/assistants": "use /v1/chat/completions",
    "/v1/threads": "use /v1/chat/completions",
    "/v1/conversations": "use /v1/chat/completions",
    "/v1/audio": "its models read and write text only",
    "/v1/images": "its models read and write text only",
    "/v1/videos": "its models read and write text only",
    "/v1/moderations": "it has no model that moderates",
    "/v1/realtime": "use /v1/chat/completions with stream: true",
    "/v1/batches": "send the requests one by one; the queue holds them",
    "/v1/vector_stores": "it keeps no documents",
    "/v1/evals": "tunesmith run measures a model, and its report says how well",
    "/v1/fine_tuning": "start it with --jobs DIR to fine-tune by this API",
    "/v1/files": "start it with --jobs DIR to fine-tune by this API",
    "/v1/uploads": "send a file to /v1/files whole, where --jobs is on",
}
METHODS = ["GET", "POST", "DELETE", "PUT", "PATCH"]


@dataclass(frozen=True)
class Front:
    """A server that can be run.

    Attributes:
        app: by ASGI.
        house: who is in it; ``leaving`` is set when nobody else may come.
    """

    app: ASGIApp
    house: House


def front(
    models: Models,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    runs: Path | None = None,
    answered: Answered | None = None,
    more: Sequence[BaseRoute] = (),
) -> Front:
    """The server of these models.

    Args:
        models: that can be asked.
        limits: what a request may take; None: the usual.
        access: who may come in; None: whoever reaches it.
        runs: the folder whose runs ``POST /v1/adapters`` may add; None: none.
        answered: is told of every chat that was answered whole.
        more: routes that go before the others.
    """
    limits = limits or Limits()
    house = House(limits)
    telemetry = Telemetry(house, models.served)

    async def health(_: Request) -> Response:
        if house.leaving:
            return json_response({"status": "shutting down"}, 503)
        return json_response({"status": "ok", "models": len(models.served())})

    async def metrics(_: Request) -> Response:
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4")

    async def elsewhere(request: Request) -> Response:
        path = request.url.path
        named = next(begin for begin in ELSEWHERE if path == begin or path.startswith(f"{begin}/"))
        raise ApiError(404, f"{request.method} {path:.120} is not served here: {ELSEWHERE[named]}.", "unsupported_endpoint")

    chat = CompletionRoute("chat", chat_request, models, house, telemetry, answered)
    text = CompletionRoute("text_completion", text_request, models, house, telemetry)
    known: list[BaseRoute] = [
        *more,
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", text, methods=["POST"]),
        *model_routes(models, limits, runs),
    ]
    paths = [route.path for route in more if isinstance(route, Route)]
    absent = [begin for begin in ELSEWHERE if not any(path.startswith(begin) for path in paths)]
    refused = [Route(f"{begin}{rest}", elsewhere, methods=METHODS) for begin in absent for rest in ("", "/{rest:path}")]
    app = Starlette(routes=[*known, *refused], exception_handlers=dict(HANDLERS))
    return Front(Guard(app, access or Access(), house, telemetry), house)
