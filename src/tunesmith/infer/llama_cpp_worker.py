"""The child process of ``LlamaCppEngine``: loads a GGUF, then answers one JSON request a line with one JSON reply a line.

    python -m tunesmith.infer.llama_cpp_worker MODEL.gguf CONTEXT THREADS

Requests are OpenAI chat completions. The first line out says that the model is loaded; the end of input ends it. The
engine's own server object listens on a loopback port of its choosing as long as the process lives.
"""

import json
import os
import sys
from typing import Any

import xllamacpp


def main(gguf: str, context: str, threads: str) -> None:
    """Serve until the end of standard input."""
    # llama.cpp may write to stdout; keep the pipe for replies alone.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue] - compiled, no stubs
    params.model.path = gguf
    params.n_ctx = int(context)
    params.n_parallel = 1
    params.cpuparams.n_threads = int(threads)
    params.cpuparams_batch.n_threads = int(threads)
    params.use_jinja = True
    params.verbosity = 0
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    _write(replies, {"loaded": gguf})
    for line in sys.stdin:
        reply = server.handle_chat_completions(json.loads(line))
        _write(replies, json.loads(reply) if isinstance(reply, str | bytes) else reply)


def _write(replies: Any, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
