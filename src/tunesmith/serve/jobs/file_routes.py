"""``/v1/files``: upload, list, look at, read and delete."""

import re
import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tunesmith.formatting import gb
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.body import length_of
from tunesmith.serve.jobs.asked import after_of, body_of, id_in_path, is_retry, limit_of
from tunesmith.serve.jobs.files import Upload
from tunesmith.serve.jobs.objects import file_object, page
from tunesmith.serve.jobs.queue import RETRIED_WITHIN, over_quota
from tunesmith.serve.jobs.service import Service
from tunesmith.serve.jobs.store import StoredFile

PURPOSES = ("fine-tune",)
EXPIRES = range(3600, 2592001)  # seconds, as OpenAI has it
MOST = 10_000


def file_routes(service: Service) -> list[Route]:
    """The routes of files."""
    routes = FileRoutes(service)
    return [
        Route("/v1/files", routes.create, methods=["POST"]),
        Route("/v1/files", routes.list, methods=["GET"]),
        Route("/v1/files/{id}", routes.retrieve, methods=["GET"]),
        Route("/v1/files/{id}", routes.delete, methods=["DELETE"]),
        Route("/v1/files/{id}/content", routes.content, methods=["GET"]),
    ]


class FileRoutes:
    """Files of the owner who asks."""

    def __init__(self, service: Service):
        self._service, self._store, self._shelf = service, service.place.store, service.shelf

    async def create(self, request: Request) -> Response:
        """Take a file."""
        owner = self._service.owner_of(request)
        stored = await run_in_threadpool(self._store.stored_bytes, owner)
        expected = length_of(request)
        if stored + expected > self._shelf.stored_bytes:
            raise over_quota(
                f"the files of this key have {gb(stored)}, and may have {gb(self._shelf.stored_bytes)}: delete some"
            )
        upload = await self._shelf.receive(request.headers.get("content-type", ""), expected, body_of(request))
        try:
            purpose, expires_at = _purpose(upload), _expiry(upload)
        except ApiError:
            await run_in_threadpool(upload.path.unlink)
            raise
        retried = is_retry(request)
        file = await run_in_threadpool(self._keep, upload, owner, purpose, expires_at, retried)
        return JSONResponse(file_object(file))

    def _keep(self, upload: Upload, owner: str, purpose: str, expires_at: float | None, retried: bool) -> StoredFile:
        if retried:
            since = time.time() - RETRIED_WITHIN
            earlier = self._store.same_file(owner, upload.sha256, upload.filename or "", since)
            if earlier is not None:
                upload.path.unlink()
                return earlier
        file = self._store.add_file(self._shelf.keep(upload, owner, purpose, expires_at))
        if self._store.stored_bytes(owner) > self._shelf.stored_bytes:  # several came at a time, or its length was not said
            self._delete(file)
            raise over_quota(f"the files of this key would have more than {gb(self._shelf.stored_bytes)}")
        return file

    def _delete(self, file: StoredFile) -> None:
        self._store.take_file(file.owner, file.id)
        self._shelf.path(file).unlink(missing_ok=True)

    def list(self, request: Request) -> Response:
        """A page of files."""
        owner, query = self._service.owner_of(request), request.query_params
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, f"order: expected asc or desc, found {order[:40]!r}", "invalid_value", param="order")
        limit = limit_of(request, MOST, MOST)
        after = after_of(request, lambda file_id: self._store.file(owner, file_id))
        number = None if after is None else after.number
        files = self._store.files(owner, query.get("purpose"), number, limit + 1, order == "desc")
        return JSONResponse(page(files, limit, file_object))

    def retrieve(self, request: Request) -> Response:
        """One file."""
        return JSONResponse(file_object(self._file(request)))

    def content(self, request: Request) -> Response:
        """The bytes of a file."""
        file = self._file(request)
        return FileResponse(self._shelf.path(file), media_type="application/octet-stream", filename=file.filename)

    def delete(self, request: Request) -> Response:
        """Delete a file; the jobs that were made of it keep theirs."""
        file = self._file(request)
        self._delete(file)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    def _file(self, request: Request) -> StoredFile:
        return find_file(self._service, self._service.owner_of(request), id_in_path(request))


def find_file(service: Service, owner: str, file_id: str, param: str = "id") -> StoredFile:
    """A file of an owner.

    Raises:
        ApiError: 404, there is none.
    """
    file = service.place.store.file(owner, file_id)
    if file is None:
        raise ApiError(404, f"No such File object: {file_id[:80]}", "file_not_found", param=param)
    return file


def _purpose(upload: Upload) -> str:
    purpose = upload.fields.get("purpose")
    if purpose is None:
        raise ApiError(400, "Missing required parameter: 'purpose'", "missing_required_parameter", param="purpose")
    if purpose not in PURPOSES:
        raise ApiError(400, f"purpose: {purpose[:40]!r} is not taken here; fine-tune is", "invalid_value", param="purpose")
    known = re.compile(r"purpose|expires_after\[(anchor|seconds)\]")
    if other := [name for name in upload.fields if not known.fullmatch(name)]:
        raise ApiError(
            400, f"Unrecognized request argument supplied: {other[0][:80]}", "unknown_parameter", param=other[0][:80]
        )
    return purpose


def _expiry(upload: Upload) -> float | None:
    anchor, seconds = (upload.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError(400, "expires_after[anchor]: expected created_at", "invalid_value", param="expires_after[anchor]")
    if seconds is None or not (seconds.isascii() and seconds.isdecimal()) or int(seconds[:9]) not in EXPIRES:
        message = f"expires_after[seconds]: expected a whole number from {EXPIRES.start:,} to {EXPIRES.stop - 1:,}"
        raise ApiError(400, message, "invalid_value", param="expires_after[seconds]")
    return time.time() + int(seconds)
