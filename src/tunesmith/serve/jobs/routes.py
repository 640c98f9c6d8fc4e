"""``/v1/fine_tuning`` and ``DELETE /v1/models/{name}``: jobs as OpenAI's client asks for them, an estimate and a preview."""

import asyncio
import json
import re
import signal
import subprocess
import uuid
from dataclasses import asdict
from typing import Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tunesmith.hardware import Child
from tunesmith.rundir.records.base import Json
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.jobs.asked import after_of, id_in_path, is_retry, json_body, limit_of
from tunesmith.serve.jobs.file_routes import file_routes, find_file
from tunesmith.serve.jobs.hyperparameters import JobRequest, SampleRequest, job_request, read
from tunesmith.serve.jobs.objects import checkpoint_object, event_object, job_object, model_name, page
from tunesmith.serve.jobs.programs import PYTHON, signal_group
from tunesmith.serve.jobs.queue import NewJob
from tunesmith.serve.jobs.recipes import Wanted
from tunesmith.serve.jobs.service import Service
from tunesmith.serve.jobs.store import Job, StoredFile

PATIENCE = 300.0  # seconds that an estimate or a preview may take
AT_A_TIME = 2  # of them
OF_METADATA = re.compile(r"metadata\[(.+)\]", re.DOTALL)


def routes(service: Service) -> list[Route]:
    """All routes of files and jobs."""
    jobs = JobRoutes(service)
    of_job = "/v1/fine_tuning/jobs/{id}"
    return [
        *file_routes(service),
        Route("/v1/fine_tuning/jobs", jobs.create, methods=["POST"]),
        Route("/v1/fine_tuning/jobs", jobs.list, methods=["GET"]),
        Route(of_job, jobs.retrieve, methods=["GET"]),
        Route(f"{of_job}/cancel", jobs.cancel, methods=["POST"]),
        Route(f"{of_job}/pause", jobs.pause, methods=["POST"]),
        Route(f"{of_job}/resume", jobs.resume, methods=["POST"]),
        Route(f"{of_job}/events", jobs.events, methods=["GET"]),
        Route(f"{of_job}/checkpoints", jobs.checkpoints, methods=["GET"]),
        Route("/v1/fine_tuning/estimate", jobs.estimate, methods=["POST"]),
        Route("/v1/fine_tuning/preview", jobs.preview, methods=["POST"]),
        Route("/v1/models/{name}", jobs.delete_model, methods=["DELETE"]),
    ]


class JobRoutes:
    """Jobs of the owner who asks."""

    def __init__(self, service: Service):
        self._service, self._store, self._queue = service, service.place.store, service.queue
        self._children = asyncio.Semaphore(AT_A_TIME)

    async def create(self, request: Request) -> Response:
        """Put a job in."""
        body = await json_body(request)
        asked = job_request(body.value)
        key = request.headers.get("idempotency-key") or None
        if key is not None and len(key) > 255:
            raise ApiError(400, "Idempotency-Key: more than 255 characters", "invalid_value")
        new = self._new(request, asked, body.sha256, key)
        return JSONResponse(job_object(await run_in_threadpool(self._create, new)))

    def _new(self, request: Request, asked: JobRequest, sha256: str, key: str | None) -> NewJob:
        self._refuse_unknown_model(asked.model)
        return NewJob(
            id=f"ftjob-{uuid.uuid4().hex[:24]}",
            owner=self._service.owner_of(request),
            model=asked.model,
            training_file=asked.training_file,
            validation_file=asked.validation_file,
            suffix=asked.suffix,
            seed=self._service.settings.seed if asked.seed is None else asked.seed,
            metadata=asked.metadata,
            hyperparameters=asked.asked.model_dump(),
            options=asked.options.model_dump(exclude_none=True),
            body_hash=sha256,
            idempotency_key=key,
            is_retry=is_retry(request),
        )

    def _create(self, new: NewJob) -> Job:
        training = self._rows(new.owner, new.training_file, "training_file")
        validation = None
        if new.validation_file is not None:
            validation = self._rows(new.owner, new.validation_file, "validation_file")
            if validation.sha256 == training.sha256:
                message = "validation_file: has the content of the training file; leave it out, and rows are set aside"
                raise ApiError(400, message, "invalid_value", param="validation_file")
        place = self._service.place
        try:
            place.link_rows(new.id, training, validation)
            job = self._queue.create(new)
        except FileNotFoundError as error:  # deleted just now
            place.unlink_rows(new.id)
            raise ApiError(404, f"No such File object: {new.training_file}", "file_not_found", param="training_file") from error
        except ApiError:
            place.unlink_rows(new.id)
            raise
        if job.id != new.id:  # the same request has made it before
            place.unlink_rows(new.id)
        return job

    def _rows(self, owner: str, file_id: str, param: str) -> StoredFile:
        file = find_file(self._service, owner, file_id, param)
        if file.purpose != "fine-tune":
            message = f"{param}: {file.id} has the purpose {file.purpose}, expected fine-tune"
            raise ApiError(400, message, "invalid_value", param=param)
        return file

    def _refuse_unknown_model(self, name: str) -> None:
        known = self._service.settings.models
        if name not in known:
            message = f"The model `{name[:80]}` cannot be tuned here; these can: {', '.join(known)}"
            raise ApiError(404, message, "model_not_found", param="model")

    def list(self, request: Request) -> Response:
        """A page of jobs."""
        owner = self._service.owner_of(request)
        limit = limit_of(request, 20, 100)
        pairs = [(OF_METADATA.fullmatch(name), value) for name, value in request.query_params.items()]
        metadata = {match[1]: value for match, value in pairs if match is not None}
        after = after_of(request, lambda job_id: self._store.job(owner, job_id))
        jobs = self._store.jobs(owner, metadata, None if after is None else after.number, limit + 1)
        return JSONResponse(page(jobs, limit, job_object))

    def retrieve(self, request: Request) -> Response:
        """One job."""
        return JSONResponse(job_object(self._job(request)))

    def cancel(self, request: Request) -> Response:
        """Cancel a job."""
        return JSONResponse(job_object(self._queue.cancel(self._job(request))))

    def pause(self, request: Request) -> Response:
        """Pause a job."""
        return JSONResponse(job_object(self._queue.pause(self._job(request))))

    def resume(self, request: Request) -> Response:
        """Let a paused job go on."""
        return JSONResponse(job_object(self._queue.resume(self._job(request))))

    def events(self, request: Request) -> Response:
        """A page of a job's events, the newest first."""
        job, limit = self._job(request), limit_of(request, 20, 1000)
        before = after_of(request, lambda name: _number_in(name, f"ftevent-{job.short}-"))
        return JSONResponse(page(self._store.events(job.id, before, limit + 1), limit, event_object))

    def checkpoints(self, request: Request) -> Response:
        """A page of a job's checkpoints, the newest first."""
        job, limit = self._job(request), limit_of(request, 10, 1000)
        before = after_of(request, lambda name: _number_in(name, f"ftckpt-{job.short}-"))
        reached = self._store.checkpoints(job.id, before, limit + 1)
        return JSONResponse(page(reached, limit, lambda entry: checkpoint_object(entry, model_name(job))))

    async def estimate(self, request: Request) -> Response:
        """What a job would take."""
        asked = job_request((await json_body(request)).value)
        self._refuse_unknown_model(asked.model)
        owner = self._service.owner_of(request)
        file = await run_in_threadpool(self._rows, owner, asked.training_file, "training_file")
        if asked.validation_file is not None:
            await run_in_threadpool(self._rows, owner, asked.validation_file, "validation_file")
        wanted = Wanted(
            name="estimate",
            model=asked.model,
            hyperparameters=asked.asked.model_dump(),
            options=asked.options.model_dump(exclude_none=True),
            file=file.place,
            brings_test=asked.validation_file is not None,
        )
        return await self._ask_child("estimate", wanted, file)

    async def preview(self, request: Request) -> Response:
        """The first rows as they would be trained."""
        asked = read(SampleRequest, (await json_body(request)).value)
        self._refuse_unknown_model(asked.model)
        file = await run_in_threadpool(self._rows, self._service.owner_of(request), asked.training_file, "training_file")
        return await self._ask_child(
            "preview", Wanted(name="preview", model=asked.model, file=file.place, rows=asked.rows), file
        )

    async def _ask_child(self, verb: Literal["estimate", "preview"], wanted: Wanted, file: StoredFile) -> Response:
        async with self._children:
            answer = await run_in_threadpool(self._run_child, verb, wanted)
        error = answer.get("error")
        if isinstance(error, dict):
            message = str(error["message"]).replace(str(self._service.shelf.path(file)), file.id)
            message = message.replace(f"{self._service.place.directory}/", "")
            raise ApiError(400, message, str(error["code"]), param=str(error["param"]) if error["param"] else None)
        return JSONResponse(answer["ok"])

    def _run_child(self, verb: str, wanted: Wanted) -> Json:
        command = [PYTHON, "-m", "tunesmith.serve.jobs.tasks", verb, str(self._service.place.directory)]
        pipe = subprocess.PIPE
        child = Child(command, online=True, start_new_session=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        try:
            printed, _ = child.communicate(json.dumps(asdict(wanted)).encode(), PATIENCE)
        except subprocess.TimeoutExpired as error:
            signal_group(child, signal.SIGKILL)
            child.communicate()
            raise ApiError(503, f"the {verb} took more than {PATIENCE:g} seconds", "timeout") from error
        if child.returncode:
            raise ApiError(500, f"the {verb} failed; exit code {child.returncode}", "internal_error")
        return json.loads(printed)

    async def delete_model(self, request: Request) -> Response:
        """Take a tuned model away."""
        name = id_in_path(request, "name")
        job = await run_in_threadpool(self._store.model, self._service.owner_of(request), name)
        if job is None or job.status != "succeeded":
            raise ApiError(
                404, f"The model `{name}` does not exist, or is none that was tuned here", "model_not_found", param="model"
            )
        await self._service.forget(job)
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    def _job(self, request: Request) -> Job:
        job_id = id_in_path(request)
        job = self._store.job(self._service.owner_of(request), job_id)
        if job is None:
            raise ApiError(404, f"Could not find fine tune: {job_id}", "fine_tune_not_found", param="fine_tune_id")
        return job


def _number_in(name: str, prefix: str) -> int | None:
    """The number that an id ends with."""
    number = name.removeprefix(prefix)
    return int(number) if name.startswith(prefix) and number.isdecimal() and len(number) < 16 else None
