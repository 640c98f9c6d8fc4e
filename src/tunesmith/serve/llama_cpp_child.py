"""The process in which llama.cpp serves a base and the adapters on it, over a loopback port that one parent knows the key of.

    python -m tunesmith.serve.llama_cpp_child        settings on standard input, facts on standard output, a JSON line each

The process ends when its standard input does, and is killed with its parent (``hardware.Child``). The key comes with the
settings and not as an argument, which every user of the machine can read.

What is switched off, and why:

- **The prompt cache in host memory** (``cache_ram_mib``) and context checkpoints beside adapters: both are found by tokens
  alone and know no adapters, so an answer would begin with keys and values of another one (docs/LOG.md has the table).
- Adapters begin at scale 0 (``lora_init_without_apply``); every request names the scale of each.
- Everything but errors in the log, and the server's own pages: no prompt lands anywhere.

Each slot has the whole context for itself (``kv_unified`` off): what one client sends takes no room from another.
"""

import json
import os
import sys
import urllib.request
from dataclasses import asdict
from typing import Any

from tunesmith.engines.llama_cpp_worker import has_gpu
from tunesmith.kernels.llama_cpp import import_llama_cpp
from tunesmith.serve.llama_cpp_process import Facts, Settings

xllamacpp = import_llama_cpp()
SECONDS = 60  # that a server that has loaded its model may take to say so
_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # what stays on this machine goes to no proxy


def serve(settings: Settings) -> Any:
    """llama.cpp's server, its model loaded.

    Raises:
        RuntimeError: llama.cpp cannot run the file, or apply an adapter.
    """
    params = xllamacpp.CommonParams()
    params.model.path = settings.model
    params.n_ctx = settings.context * settings.slots
    params.n_parallel = settings.slots
    params.kv_unified = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.fit_params = has_gpu()  # layers into the memory of a GPU; without one there is nothing to fit
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    if settings.adapters:
        params.n_ctx_checkpoints = 0
        adapter = xllamacpp.CommonAdapterLoraInfo
        params.lora_adapters = [adapter(path, 0.0) for path in settings.adapters]
        params.lora_init_without_apply = True
    params.api_keys = [settings.key]
    params.cors_origins = ""
    params.ui = False
    params.verbosity = 1  # errors
    return xllamacpp.Server(params)


def facts_of(server: Any, settings: Settings) -> Facts:
    """What a running server says of itself."""

    def get(path: str) -> Any:
        request = urllib.request.Request(
            f"{server.listening_address}{path}", headers={"Authorization": f"Bearer {settings.key}"}
        )
        with _HERE.open(request, timeout=SECONDS) as response:
            return json.load(response)

    slots, (model,) = get("/slots"), get("/v1/models")["data"]
    return Facts(
        url=server.listening_address,
        slots=len(slots),
        context=min(slot["n_ctx"] for slot in slots),
        vocabulary=model["meta"]["n_vocab"],
    )


def main() -> None:
    """Serve until the end of standard input."""
    # llama.cpp may write to stdout; keep the pipe for what is said here alone.
    says = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    settings = Settings(**json.loads(sys.stdin.readline()))
    try:
        server = serve(settings)
        told: dict[str, object] = asdict(facts_of(server, settings))
    except (RuntimeError, OSError) as error:
        told = {"error": str(error).strip() or type(error).__name__}
    says.write(json.dumps(told) + "\n")
    if "error" not in told:
        sys.stdin.read()
    os._exit(0)  # without waiting for answers that nobody reads any more


if __name__ == "__main__":
    main()
