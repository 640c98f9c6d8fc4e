"""The command that serves runs by OpenAI's API."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunesmith.cli.application import USE, Lazy, app

_command = Lazy("tunesmith.serve.command")
_catalogue = Lazy("tunesmith.serve.catalogue")


@app.command(rich_help_panel=USE)
def serve(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Run directories; NAME=RUN gives a model another name.")
    ] = None,
    base: Annotated[Path | None, typer.Option("--base", help="GGUF of the base, in the place of the runs' own.")] = None,
    base_name: Annotated[str | None, typer.Option("--base-name", help="Name of the base as a model.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address; any but loopback needs --key-env.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    key_env: Annotated[
        str | None, typer.Option("--key-env", metavar="NAME", help="Environment variable with the keys, by comma or line.")
    ] = None,
    rate: Annotated[int | None, typer.Option("--rate", min=1, help="Requests a minute that each key may make.")] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, max=256, help="Answers at a time.")] = 4,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Requests that may wait; more are turned away.")] = 64,
    context: Annotated[
        int | None, typer.Option("--context", min=64, help="Tokens of a prompt and its answer; the export's by default.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--runs", metavar="DIR", help="Folder whose runs POST /v1/adapters may add.")
    ] = None,
    jobs: Annotated[
        Path | None, typer.Option("--jobs", metavar="DIR", help="Take fine-tuning jobs by the API; they are kept there.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve a run's next version when it is there, and new runs of --runs.")
    ] = False,
    engine: Annotated[
        Literal["llama.cpp", "vllm"], typer.Option("--engine", help="vllm: one that runs already, at --url.")
    ] = "llama.cpp",
    url: Annotated[str | None, typer.Option("--url", help="Of the vLLM that answers.")] = None,
    url_key_env: Annotated[
        str | None, typer.Option("--url-key-env", metavar="NAME", help="Environment variable with vLLM's own key.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Serve what may not be deployed too, and say so.")] = False,
    cors: Annotated[
        list[str] | None, typer.Option("--cors", metavar="ORIGIN", help="Origin of a web page that may ask, or *.")
    ] = None,
    shadow: Annotated[
        Path | None, typer.Option("--shadow", metavar="FILE", help="Write what base and tuned both say, with the questions.")
    ] = None,
    shadow_days: Annotated[int, typer.Option("--shadow-days", min=1, help="How long a line of it is kept.")] = 30,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
) -> None:
    """Serve tuned models and their base by OpenAI's API: chat, completions, adapters by name. Ctrl-C ends it."""
    _command.serve_command(
        _command.ServeOptions(
            runs=runs or (),
            choices=_catalogue.Choices(base=base, base_name=base_name, context=context, force=force, engine=engine),
            host=host,
            port=port,
            key_env=key_env,
            rate=rate,
            slots=slots,
            queue=queue,
            cors=cors or (),
            folder=folder,
            watch=watch,
            jobs=jobs,
            url=url,
            url_key_env=url_key_env,
            shadow=shadow,
            shadow_days=shadow_days,
            certificate=tls_cert,
            certificate_key=tls_key,
        )
    )
