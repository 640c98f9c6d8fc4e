"""Open the address, say it, and answer until somebody ends it."""

from collections.abc import Callable
from pathlib import Path

import uvicorn

from tunesmith.addresses import bound, url_host
from tunesmith.errors import RunError
from tunesmith.web.application import application
from tunesmith.web.security import is_loopback

LOOPBACK, PORT = "127.0.0.1", 8765
LAST_WORDS = 3  # seconds that answers have when the server ends


def show(
    folder: Path,
    *,
    host: str = LOOPBACK,
    port: int = PORT,
    key: str | None = None,
    serve: str | None = None,
    serve_key: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Show the runs of a folder until interrupted.

    Args:
        folder: that holds run directories, or is one.
        host: address to listen at.
        port: 0 for one that is free.
        key: that is asked for.
        serve, serve_key: as of ``application``.
        tell: is told the address, once it answers.

    Raises:
        RunError: no such folder, an address that cannot be had, or another than loopback without a key.
        MissingPackage: a chat page without the extra train.
    """
    name = url_host(host)
    if key is None and not is_loopback(name):
        raise RunError(
            f"{host}: is seen from other machines, and no key is asked for",
            "name a variable that holds one with --key-env; or stay on 127.0.0.1 and use a tunnel: ssh -L 8765:127.0.0.1:8765",
        )

    def is_closing() -> bool:
        return server.should_exit

    app = application(folder, key=key, serve=serve, serve_key=serve_key, is_closing=is_closing)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=LAST_WORDS,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    with bound(host, port) as listener:
        listener.listen()  # who follows the address at once waits, and is not turned away
        tell(f"http://{name}:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])
