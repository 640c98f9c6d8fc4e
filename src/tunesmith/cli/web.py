"""The command that shows runs in a browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tunesmith import hardware
from tunesmith.cli.application import USE, Lazy, app
from tunesmith.errors import MissingPackage, RunError

_server = Lazy("tunesmith.web.server")

PACKAGES = ("jinja2", "starlette", "uvicorn")  # of the extra


@app.command(rich_help_panel=USE)
def web(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="That holds run directories, or is one.")] = Path("runs"),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for one that is free.")] = 8765,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; one that other machines see needs --key-env.")
    ] = "127.0.0.1",
    key_env: Annotated[
        str | None, typer.Option("--key-env", metavar="NAME", help="Variable that holds the key that visitors are asked for.")
    ] = None,
    serve: Annotated[
        str | None, typer.Option("--serve", metavar="URL", help="A running tunesmith serve, for a page to ask its models.")
    ] = None,
    serve_key_env: Annotated[
        str | None, typer.Option("--serve-key-env", metavar="NAME", help="Variable that holds the key that it asks for.")
    ] = None,
) -> None:
    """Watch runs and read them in a browser: progress, curves, arms, answers, verdict. Writes nothing; Ctrl-C ends it."""
    _show()(
        folder,
        host=host,
        port=port,
        key=_key(key_env, "--key-env"),
        serve=serve,
        serve_key=_key(serve_key_env, "--serve-key-env"),
        tell=_print,
    )


def _show() -> Callable[..., None]:
    """What shows them.

    Raises:
        MissingPackage: the extra is not installed.
    """
    try:
        return _server.show
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise MissingPackage(f"web needs {error.name}", "run: pip install 'tunesmith[web]'") from error


def _print(address: str) -> None:
    print(address, flush=True)


def _key(name: str | None, option: str) -> str | None:
    """The key in a variable.

    Raises:
        RunError: it is not set, or empty.
    """
    if name is None:
        return None
    key = hardware.secret(name)
    if key is None:
        raise RunError(f"{option}: the variable {name} is not set, or empty", f"set it: export {name}=...")
    return key
