"""A server from its address to its end.

The address is taken before a model is loaded, so that a port in use is learned of at once and not after a minute; nobody is
listened to until the models are there. Loopback unless told otherwise, and any other address only with a key.

At the first signal nobody new comes in, who is in is answered, and the engines end after the last; at the second signal, or
when that takes too long, what is left is cut off.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.routing import BaseRoute

from tunesmith import hardware
from tunesmith.addresses import bound, url_host
from tunesmith.errors import RunError
from tunesmith.serve.application import front
from tunesmith.serve.asking import Models
from tunesmith.serve.guard import Access
from tunesmith.serve.habits import habits_of
from tunesmith.serve.limits import House, Limits
from tunesmith.serve.shadow import Shadow

logger = logging.getLogger(__name__)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})

Beside = Callable[[Models], AbstractAsyncContextManager[Sequence[BaseRoute]]]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, and to whom.

    Attributes:
        host, port: its address; port 0 is any that is free.
        access: who may ask.
        limits: what a request may take.
        runs: the folder whose runs may be added by request; None: none.
        certificate, certificate_key: files for TLS; None: no TLS.
        shadow: the log of both answers; None: none is kept.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    runs: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    shadow: Shadow | None = None

    def check(self) -> None:
        """Refuse what may not be served.

        Raises:
            RunError: a certificate that cannot be read, or an address that others reach and no key.
        """
        if self.certificate is not None or self.certificate_key is not None:
            _check_certificate(self.certificate, self.certificate_key)
        if hardware.is_loopback(self.host):
            return
        if self.access.keys is None:
            raise RunError(
                f"--host {self.host}: other machines reach this address, and no key is asked for",
                'run: export TUNESMITH_KEY="sk-$(openssl rand -hex 24)" and add --key-env TUNESMITH_KEY',
            )
        if self.certificate is None:
            logger.warning(f"serve: keys and texts cross the network unencrypted to {self.host}; see --tls-cert and --tls-key")

    @property
    def guarded(self) -> Access:
        """Who may ask; on loopback by the names that a request's ``Host`` may have there."""
        if not hardware.is_loopback(self.host):
            return self.access
        return replace(self.access, hosts=LOOPBACK | {url_host(self.host.lower())})


@asynccontextmanager
async def nothing_beside(_: Models) -> AsyncIterator[Sequence[BaseRoute]]:
    """No more routes."""
    yield ()


async def serve(
    open_models: Callable[[], Awaitable[Models]],
    settings: ServerSettings,
    ready: Callable[[str, Models], None],
    beside: Beside = nothing_beside,
) -> None:
    """Serve until a signal.

    Args:
        open_models: starts the engines.
        settings: of the server.
        ready: is told the address (``http://127.0.0.1:8000``) and the models when the first request may come.
        beside: what else runs as long as the server does, and its routes, which go before the others.

    Raises:
        RunError: the address cannot be taken, or not without a key; the certificate cannot be read.
        TunesmithError: the models cannot be opened.
    """
    settings.check()
    with bound(settings.host, settings.port) as address:
        models = await open_models()
        try:
            for served in models.served():
                await asyncio.to_thread(habits_of, served.renderer)  # and not with the first request
            async with AsyncExitStack() as stack:
                more = await stack.enter_async_context(beside(models))
                shadow = settings.shadow
                built = front(
                    models,
                    limits=settings.limits,
                    access=settings.guarded,
                    runs=settings.runs,
                    answered=None if shadow is None else shadow.answered,
                    more=more,
                )
                if shadow is not None:
                    await stack.enter_async_context(shadow.at_work(models, built.house))
                server = _Server(_config(built.app, settings), built.house)
                ready(_url(settings, address), models)
                await server.serve(sockets=[address])
        finally:
            await models.close()


def _config(app: object, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )


class _Server(uvicorn.Server):
    """uvicorn, which goes when the house is empty."""

    def __init__(self, config: uvicorn.Config, house: House):
        super().__init__(config)
        self._house, self._until = house, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._house.leaving:
            self.should_exit = self.force_exit = True
            return
        self._house.leaving = True
        self._until = time.monotonic() + self._house.limits.grace_s
        if self._house.inside:
            logger.info(f"serve: {self._house.inside} requests are answered to their end; again: end at once")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._house.leaving and (not self._house.inside or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Whether TLS can be had with these files.

    Raises:
        RunError: it cannot.
    """
    if certificate is None or key is None:
        raise RunError("TLS needs a certificate and its key", "name both: --tls-cert cert.pem --tls-key key.pem")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:  # the second is one of the first, and says more
        raise RunError(
            f"--tls-cert {certificate}, --tls-key {key}: {error}", "both are PEM files that belong together"
        ) from error


def _url(settings: ServerSettings, address: socket.socket) -> str:
    return f"http{'s' if settings.certificate else ''}://{url_host(settings.host)}:{address.getsockname()[1]}"
