"""Files, jobs, events and checkpoints as OpenAI's API writes them.

The client knows no ``paused`` and no ``publishing``: a paused job is told as queued, with an event that says so, and one whose
model is being loaded for serving as running, so that whoever waits for ``succeeded`` may ask the model at once.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tunesmith.rundir.records.base import Json
from tunesmith.serve.jobs.store import FINISHED, Job, JobEvent, Reached, StoredFile

T = TypeVar("T")
TOLD_AS = {"paused": "queued", "publishing": "running"}


def file_object(file: StoredFile) -> Json:
    """A file; what is there was checked for its size alone, so it is ``processed`` at once."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": None if file.expires_at is None else int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def job_object(job: Job) -> Json:
    """A job."""
    done = job.status == "succeeded"
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "estimated_finish": None,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model if done and not job.model_deleted else None,
        "organization_id": job.owner,
        "status": TOLD_AS.get(job.status, job.status),
        "hyperparameters": job.hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": job.hyperparameters}},
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [*job.result_files] if job.status in FINISHED else [],
        "trained_tokens": job.trained_tokens if job.status in FINISHED else None,
        "seed": job.seed,
        "error": job.error,
        "integrations": [],
        "metadata": None if job.metadata is None else {**job.metadata},
    }


def event_object(event: JobEvent) -> Json:
    """An event of a job."""
    return {
        "id": event_id(event),
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data if event.data is not None else {},
    }


def event_id(event: JobEvent) -> str:
    """``ftevent-<job>-<seq>``."""
    return f"ftevent-{event.job.removeprefix('ftjob-')}-{event.seq}"


def checkpoint_object(reached: Reached, model: str) -> Json:
    """A checkpoint of a job.

    Args:
        model: the name that the job's model has or will have.
    """
    return {
        "id": checkpoint_id(reached),
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(reached.created_at),
        "fine_tuned_model_checkpoint": f"{model}:ckpt-step-{reached.step}",
        "fine_tuning_job_id": reached.job,
        "metrics": {**reached.metrics},
        "step_number": reached.step,
    }


def checkpoint_id(reached: Reached) -> str:
    """``ftckpt-<job>-<step>``."""
    return f"ftckpt-{reached.job.removeprefix('ftjob-')}-{reached.step}"


def model_name(job: Job) -> str:
    """``ft:<base>:<owner>:<suffix>:<job>``, what the model of a job is asked for by."""
    return f"ft:{job.model}:{job.owner}:{job.suffix or ''}:{job.short}"


def page(entries: Sequence[T], limit: int, shown: Callable[[T], Json]) -> Json:
    """A page of a list.

    Args:
        entries: one more than the limit where there are more.
    """
    objects = [shown(entry) for entry in entries[:limit]]
    ids = [entry["id"] for entry in objects]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": [*objects], "first_id": first, "last_id": last, "has_more": len(entries) > limit}
