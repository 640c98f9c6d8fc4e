"""Models and adapters by their routes: what can be asked, what more of it is known, and what is to be served from now on.

``/v1/models`` lists as OpenAI does; an entry says beside it what is served and with which verdict, since who asks a model
should be able to learn whether it is worth it. ``/v1/adapters`` adds, replaces and removes while requests run. A run is named
by its folder inside the folder of runs that the server was started with, never by a path: whoever may ask may not read the
disk.
"""

from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tunesmith.errors import TunesmithError
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.asking import EngineGone, Models, Served
from tunesmith.serve.body import fields_of, read_body
from tunesmith.serve.completions import json_response, no_such_model
from tunesmith.serve.fields import wrong_value
from tunesmith.serve.limits import Limits
from tunesmith.serve.reply import Object


def model_routes(models: Models, limits: Limits, runs: Path | None) -> list[BaseRoute]:
    """The routes.

    Args:
        models: that are served.
        limits: of the server.
        runs: the folder whose runs may be added; None: what is served is fixed.
    """

    def find(name: str) -> Served:
        for served in models.served():
            if served.name == name:
                return served
        raise no_such_model(models, name)

    async def listed(_: Request) -> Response:
        return json_response({"object": "list", "data": [_model(served) for served in models.served()]})

    async def one(request: Request) -> Response:
        return json_response(_model(find(request.path_params["name"])))

    async def adapters(_: Request) -> Response:
        entries = [_model(served) for served in models.served() if served.run is not None]
        return json_response({"object": "list", "data": entries})

    async def add(request: Request) -> Response:
        body = fields_of(await read_body(request, limits))
        run, name, force = body.needed_text("run"), body.text("name", 128), bool(body.flag("force"))
        body.finish()
        directory = _directory(runs, run)
        try:
            served = await models.add(directory, name, force=force)
        except TunesmithError as error:
            raise ApiError(400, str(error), "adapter_not_served", "run") from None
        except EngineGone as error:
            raise ApiError(503, f"the engine with it did not stay: {error}; all is served as before", "engine_gone") from None
        return json_response(_model(served))

    async def remove(request: Request) -> Response:
        name, folder = request.path_params["name"], _folder(runs)
        run = find(name).run
        if run is None:
            raise ApiError(400, f"'{name:.80}' is no adapter but the base; it goes with the server.", "not_an_adapter", "name")
        if run.resolve().parent != folder.resolve():  # of the command line, or of somebody's job: DELETE /v1/models
            said = f"'{name:.80}' is not of the server's folder of runs; a job's model goes by DELETE /v1/models"
            raise ApiError(403, said, "adapters_are_fixed", "name")
        try:
            await models.remove(name)
        except KeyError:
            raise no_such_model(models, name) from None
        return json_response({"id": name, "object": "model", "deleted": True})

    return [
        Route("/v1/models", listed),
        Route("/v1/models/{name:path}", one),
        Route("/v1/adapters", adapters),
        Route("/v1/adapters", add, methods=["POST"]),
        Route("/v1/adapters/{name:path}", remove, methods=["DELETE"]),
    ]


def _model(served: Served) -> Object:
    """A model as OpenAI lists it, and what is known of ours."""
    sampling: dict[str, JsonValue] = {name: value for name, value in asdict(served.sampling).items() if name != "logit_bias"}
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tunesmith",
        "parent": served.parent,
        "max_model_len": served.context,
        "tunesmith": {
            "version": served.version,
            "form": served.form,
            "verdict": served.verdict,
            "warnings": list(served.warnings),
            "system": served.system,
            "max_new_tokens": served.max_new_tokens,
            "sampling": sampling,
            "run": served.run.name if served.run is not None else None,
        },
    }


def _directory(runs: Path | None, name: str) -> Path:
    """The run of that name.

    Raises:
        ApiError: none may be added, or it is not in the folder.
    """
    runs = _folder(runs)
    if "\0" in name or len(name) > 255 or Path(name).name != name:
        said = f"{name!r:.80} is no name of a run: a folder of the server's folder of runs, without a path."
        raise wrong_value("run", said)
    directory = (runs / name).resolve()
    if not directory.is_dir():
        there = sorted(path.parent.name for path in runs.glob("*/recipe.yaml"))[:8]
        raise wrong_value("run", f"there is no run {name!r:.80}; there is: {', '.join(there) or 'none'}.")
    return directory


def _folder(runs: Path | None) -> Path:
    """The folder of runs, without which what is served is fixed: what one request took away, no other could bring back.

    Raises:
        ApiError: there is none.
    """
    if runs is None:
        said = "this server was started without --runs, so no adapter is added, replaced or removed here"
        raise ApiError(403, said, "adapters_are_fixed")
    return runs
