"""The command ``tunesmith serve``: from its options to a server that runs until it is told to end.

What can be wrong is looked at in the order of what it costs: options, keys and files, the address, then the runs (whose files
are hashed, which takes seconds), then llama.cpp.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import BaseRoute

from tunesmith import hardware
from tunesmith.errors import ExportError, RunError
from tunesmith.serve.asking import EngineGone, Models
from tunesmith.serve.background import at_work
from tunesmith.serve.catalogue import Catalogue, Choices, named
from tunesmith.serve.generations import Generations
from tunesmith.serve.guard import Access
from tunesmith.serve.jobs.routes import routes
from tunesmith.serve.jobs.service import LOCAL, Service
from tunesmith.serve.jobs.settings import SETTINGS
from tunesmith.serve.keys import Keys, Rate
from tunesmith.serve.limits import Limits
from tunesmith.serve.run_server import Beside, ServerSettings, serve
from tunesmith.serve.shadow import Shadow, without_other
from tunesmith.serve.telemetry import visit_of
from tunesmith.serve.vllm_engine import Vllm, VllmModels
from tunesmith.serve.watch import Watch
from tunesmith.serve.welcome import welcome

logger = logging.getLogger(__name__)


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
        watch: whether runs that change become the next version of their model, and those of ``folder`` models of their own.
        jobs: directory of fine-tuning jobs; None: none are taken.
        url: of a vLLM that answers; None: llama.cpp does, in a process of ours.
        url_key_env: environment variable with its key; None: it asks for none.
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
    watch: bool
    jobs: Path | None
    url: str | None
    url_key_env: str | None
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
    _check(options)
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
        logger.info("serve: files are checked and the engine is started")
        entries = [await asyncio.to_thread(catalogue.find, path, name) for name, path in map(named, options.runs)]
        try:
            if options.url is None:
                return await Generations.open(entries, catalogue.find, options.slots)
            return await VllmModels.open(Vllm(options.url, _key_of_engine(options)), entries, catalogue.find)
        except EngineGone as error:
            raise ExportError(
                f"the engine did not stay: {error}", "its log is above; is there memory for the model?"
            ) from error

    def ready(url: str, models: Models) -> None:
        print(welcome(url, models.served(), options.key_env, _notes(options)), flush=True)
        if shadow is not None and (alone := without_other(models)):
            logger.warning(f"shadow: nothing is written of {', '.join(alone)}: there is no one other model to ask the same")

    asyncio.run(serve(open_models, settings, ready, _beside(options)))


def _check(options: ServeOptions) -> None:
    """Refuse what cannot be meant.

    Raises:
        RunError: nothing to serve, options that contradict each other, or a system that cannot.
    """
    if sys.platform != "linux":
        raise RunError(
            f"serve needs Linux, here is {sys.platform}: files and processes are handed on by /proc",
            "take WSL2 or a container (docs/how-to/install.md), or a program of llama.cpp for the GGUF of the run",
        )
    if not options.runs and options.folder is None and options.jobs is None:
        raise RunError("nothing to serve", "name a run: tunesmith serve runs/NAME; or take jobs: tunesmith serve --jobs jobs")
    if options.folder is not None and not options.folder.is_dir():
        raise RunError(f"--runs {options.folder}: no such folder", "name the folder that holds your runs")
    if options.choices.engine == "vllm" and not options.runs:
        raise RunError(
            "--engine vllm needs a run, which says what base the vLLM has to have",
            "name one: tunesmith serve runs/NAME --engine vllm --url http://127.0.0.1:8001",
        )
    if (options.url is None) == (options.choices.engine == "vllm"):
        raise RunError("--engine vllm and --url go together", "as in: --engine vllm --url http://127.0.0.1:8001")


def _key_of_engine(options: ServeOptions) -> str | None:
    """The key that the engine behind asks for.

    Raises:
        RunError: the variable that should hold it does not.
    """
    if options.url_key_env is None:
        return None
    key = hardware.secret(options.url_key_env)
    if key is None:
        raise RunError(
            f"--url-key-env {options.url_key_env}: the environment variable is not set",
            f"run: export {options.url_key_env}=...",
        )
    return key


def _beside(options: ServeOptions) -> Beside:
    """What runs beside the front: jobs, whose owners are the keys, and the watch over runs.

    Raises:
        RecipeError: the settings of the jobs are wrong.
    """
    service = None
    if options.jobs is not None:
        base = options.choices.base
        bases = None if base is None else {options.choices.base_name or base.stem: str(base)}
        service = Service(options.jobs, bases, owner_of=lambda request: visit_of(request).key.replace(" ", "-") or LOCAL)

    @asynccontextmanager
    async def beside(models: Models) -> AsyncIterator[Sequence[BaseRoute]]:
        async with AsyncExitStack() as stack:
            if options.watch:
                runs = {served.name: served.run for served in models.served() if served.run is not None}
                watch = Watch(models, runs, options.folder, force=options.choices.force)
                await stack.enter_async_context(at_work("the watch over runs", watch.run()))
            if service is not None:
                await stack.enter_async_context(service.running(models))
            yield () if service is None else routes(service)

    return beside


def _notes(options: ServeOptions) -> list[str]:
    """What a user should know of how it is served."""
    notes: list[str] = []
    if options.key_env is None:
        notes.append("every program on this machine may ask; --key-env NAME asks for a key")
    if options.folder is not None:
        notes.append(f"POST /v1/adapters adds runs of {options.folder}")
    if options.watch:
        notes.append("runs are watched: a new export and verdict become the next version of their model")
    if options.jobs is not None:
        notes.append(f"fine-tuning jobs are taken; {options.jobs / SETTINGS} says what may be tuned")
    if options.shadow is not None:
        notes.append(
            f"questions and the answers of base and tuned are written to {options.shadow} (readable by you alone) and kept "
            f"{options.shadow_days} days"
        )
    return notes
