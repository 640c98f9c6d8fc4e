"""The command ``tunesmith serve``: from its options to a server that runs until it is told to end.

What can be wrong is looked at in the order of what it costs: options, keys and files, the address, then the runs (whose files
are hashed, which takes seconds), then llama.cpp.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import BaseRoute

from tunesmith.errors import RunError
from tunesmith.serve.asking import Models
from tunesmith.serve.catalogue import Catalogue, Choices, named
from tunesmith.serve.generations import Generations
from tunesmith.serve.guard import Access
from tunesmith.serve.jobs.routes import routes
from tunesmith.serve.jobs.service import LOCAL, Service
from tunesmith.serve.jobs.settings import SETTINGS
from tunesmith.serve.keys import Keys, Rate
from tunesmith.serve.limits import Limits
from tunesmith.serve.run_server import Beside, ServerSettings, nothing_beside, serve
from tunesmith.serve.shadow import Shadow
from tunesmith.serve.telemetry import visit_of
from tunesmith.serve.welcome import welcome


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The options, as they were typed.

    Attributes:
        runs: ``RUN`` or ``NAME=RUN``.
        choices: what holds for all of them.
        host, port: the address.
        key_env: environment variable with the keys.
        rate: requests a minute of each key.
        slots, queue: answers under way, and requests that wait.
        cors: origins of pages that may ask.
        folder: whose runs may be added by request.
        jobs: directory of fine-tuning jobs; None: none are taken.
        shadow, shadow_days: the log of both answers, and how long a line is kept.
        certificate, certificate_key: files for TLS.
    """

    runs: Sequence[str]
    choices: Choices
    host: str
    port: int
    key_env: str | None
    rate: int | None
    slots: int
    queue: int
    cors: Sequence[str]
    folder: Path | None
    jobs: Path | None
    shadow: Path | None
    shadow_days: int
    certificate: Path | None
    certificate_key: Path | None


def serve_command(options: ServeOptions) -> None:
    """Serve until a signal.

    Raises:
        RunError: a run that is not there or may not be served, an address that cannot be taken, a key that is none.
        RecipeError: the settings of jobs are wrong.
        ExportError: llama.cpp cannot run a file.
        MissingPackage: the extra is not installed.
    """
    if not options.runs and options.folder is None and options.jobs is None:
        raise RunError("nothing to serve", "name a run: tunesmith serve runs/NAME; or take jobs: tunesmith serve --jobs jobs")
    if options.folder is not None and not options.folder.is_dir():
        raise RunError(f"--runs {options.folder}: no such folder", "name the folder that holds your runs")
    keys = None if options.key_env is None else Keys(options.key_env)
    shadow = None if options.shadow is None else Shadow(options.shadow, options.shadow_days)
    settings = ServerSettings(
        host=options.host,
        port=options.port,
        access=Access(keys=keys, rate=None if options.rate is None else Rate(options.rate), origins=tuple(options.cors)),
        limits=Limits(slots=options.slots, queue=options.queue),
        runs=None if options.folder is None else options.folder.resolve(),
        certificate=options.certificate,
        certificate_key=options.certificate_key,
        shadow=shadow,
    )
    catalogue = Catalogue(options.choices)

    async def open_models() -> Models:
        entries = [await asyncio.to_thread(catalogue.find, path, name) for name, path in map(named, options.runs)]
        return await Generations.open(entries, catalogue.find, options.slots)

    def ready(url: str, models: Models) -> None:
        print(welcome(url, models.served(), options.key_env, _notes(options)), flush=True)

    beside = nothing_beside if options.jobs is None else _jobs_beside(options.jobs, options.choices)
    asyncio.run(serve(open_models, settings, ready, beside))


def _jobs_beside(directory: Path, choices: Choices) -> Beside:
    """Fine-tuning by the API, for as long as the server runs; every key has jobs of its own.

    Raises:
        RecipeError: the settings of the directory are wrong.
    """
    bases = None if choices.base is None else {choices.base_name or choices.base.stem: str(choices.base)}
    service = Service(directory, bases, owner_of=lambda request: visit_of(request).key.replace(" ", "-") or LOCAL)

    @asynccontextmanager
    async def beside(models: Models) -> AsyncIterator[Sequence[BaseRoute]]:
        async with service.running(models):
            yield routes(service)

    return beside


def _notes(options: ServeOptions) -> list[str]:
    """What a user should know of how it is served."""
    notes: list[str] = []
    if options.key_env is None:
        notes.append("every program on this machine may ask; --key-env NAME asks for a key")
    if options.folder is not None:
        notes.append(f"POST /v1/adapters adds runs of {options.folder}")
    if options.jobs is not None:
        notes.append(f"fine-tuning jobs are taken; {options.jobs / SETTINGS} says what may be tuned")
    if options.shadow is not None:
        notes.append(
            f"questions and the answers of base and tuned are written to {options.shadow} (readable by you alone) and kept "
            f"{options.shadow_days} days"
        )
    return notes
