"""The child process that llama.cpp runs in: one JSON request a line in, one JSON reply a line out.

    python -m tunesmith.engines.llama_cpp_worker MODEL.gguf CONTEXT THREADS [ADAPTER.gguf]

A request names what is to be done (``do``); the reply has ``done``, or ``error`` and ``hint``. Behind the reply to ``logits``
come the numbers themselves, raw fp32 rows in the machine's byte order: as JSON a row of 49,152 would be half a megabyte. The
end of input ends the process.

Two parts of llama.cpp stand behind the requests, and each is made when it is first asked for. Its server renders
conversations and answers them, over a loopback port of its choosing that is open as long as the process lives. Its library
(``engines/libllama.py``) gives token ids and logits. The server keeps its model to itself, so where both are asked for the file
is opened twice; it is mapped, and a page of it lies in memory once.

An adapter is loaded by the server at scale 0 and applied by the requests that ask for it; the library applies it to all.

Shape suffixes: V vocabulary; here: B tokens of a batch whose logits are wanted.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith import hardware
from tunesmith.engines.libllama import Libllama
from tunesmith.errors import ExportError
from tunesmith.kernels.llama_cpp import import_llama_cpp
from tunesmith.rundir.records import Json

xllamacpp = import_llama_cpp()
SECONDS = 60  # that rendering may take
_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # what stays on this machine goes to no proxy


class Worker:
    """What the requests ask for.

    Args:
        gguf: the model file.
        context: tokens of context.
        threads: for computing.
        lora: adapter GGUF.
        replies: where rows of logits go.
    """

    def __init__(self, gguf: Path, context: int, threads: int, lora: Path | None, replies: BinaryIO):
        self._gguf, self._context, self._threads, self._lora, self._replies = gguf, context, threads, lora, replies
        self._server: Any = None
        self._library: Libllama | None = None

    def answer(self, request: dict[str, Any]) -> Any:
        """What is replied to a request: its ``done``.

        Raises:
            ExportError: llama.cpp refuses.
        """
        match request["do"]:
            case "load server":
                self.server()
                return has_gpu()
            case "load library":
                self.library()
                return False
            case "chat":
                try:
                    reply = self.server().handle_chat_completions(request["body"])
                except (ValueError, RuntimeError) as error:  # of llama.cpp, as its server would have said it
                    return {"error": {"message": str(error)}}
                return json.loads(reply) if isinstance(reply, str | bytes) else reply
            case "render":
                return self.render(request["messages"])
            case "tokenize":
                return self.library().tokenize(request["text"])
            case "detokenize":
                return self.library().detokenize(request["ids"])
            case "score ids":
                return self.library().score(request["context"], request["continuation"], keep=True)
            case "score":
                return self.score(request["messages"], request["answer"])
        raise AssertionError(request)

    def server(self) -> Any:
        """llama.cpp's server.

        Raises:
            ExportError: it cannot run the file.
        """
        if self._server is None:
            params = xllamacpp.CommonParams()
            params.model.path = str(self._gguf)
            params.n_ctx = self._context
            params.n_parallel = 1
            threads = hardware.cpu_count() if has_gpu() else self._threads  # one process serves it alone
            params.cpuparams.n_threads = threads
            params.cpuparams_batch.n_threads = threads
            params.use_jinja = True
            params.verbosity = 1  # errors
            # To fit layers into the memory of a GPU, the file is read once more; without one there is nothing to fit.
            params.fit_params = has_gpu()
            if self._lora is not None:
                adapter = xllamacpp.CommonAdapterLoraInfo(str(self._lora), 0.0)
                params.lora_adapters = [adapter]
                params.lora_init_without_apply = True
            try:
                self._server = xllamacpp.Server(params)
            except RuntimeError as error:
                raise ExportError(f"{self._gguf}: llama.cpp cannot run it: {error}", "run: tunesmith export RUN") from error
        return self._server

    def library(self) -> Libllama:
        """llama.cpp's library, the model loaded; see ``Libllama``."""
        if self._library is None:
            self._library = Libllama(self._gguf, self._context, self._threads, self._lora)
        return self._library

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt that the server makes of a conversation, with the BOS that its tokenizer puts in front.

        Raises:
            ExportError: llama.cpp cannot render a conversation.
        """
        request = urllib.request.Request(
            f"{self.server().listening_address}/apply-template",
            json.dumps({"messages": messages}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with _HERE.open(request, timeout=SECONDS) as response:
                return self.library().bos + json.load(response)["prompt"]
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:300]
            raise ExportError(f"{self._gguf}: llama.cpp cannot render a conversation: {reason}", "set chat.template") from error

    def score(self, messages: list[dict[str, str]], answer: str) -> Json:
        """``Scored`` of an answer to a conversation."""
        library = self.library()
        prompt = library.tokenize(self.render(messages))
        answer_ids = library.answer_ids(answer, prompt)
        logprob, greedy = library.score(prompt, answer_ids)
        return {"logprob": logprob, "prompt_tokens": len(prompt), "tokens": len(answer_ids), "greedy": greedy}

    def write_logits(self, ids: list[int], first: int) -> None:
        """Reply with the shape, then with the rows as they are computed.

        A pass that fails behind the first one leaves the rows short; it ends the process, which the other side notices.
        """
        computed = self.library().logits(ids, first)
        logits_BV = next(computed)
        self.write({"done": [len(ids) - first, logits_BV.shape[1]]})
        self._replies.write(logits_BV.data)
        for logits_BV in computed:
            self._replies.write(logits_BV.data)
        self._replies.flush()

    def write(self, reply: Json) -> None:
        """One line."""
        self._replies.write(json.dumps(reply).encode() + b"\n")
        self._replies.flush()


def has_gpu() -> bool:
    """Whether llama.cpp computes on something else than the CPU."""
    cpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    devices = xllamacpp.get_device_info()
    return any(device["type"] != cpu for device in devices)


def main(gguf: str, context: str, threads: str, lora: str | None = None) -> None:
    """Serve until the end of standard input."""
    # llama.cpp may write to stdout; keep the pipe for replies alone.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker(Path(gguf), int(context), int(threads), Path(lora) if lora else None, replies)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if request["do"] == "logits":
                worker.write_logits(request["ids"], request["first"])
            else:
                worker.write({"done": worker.answer(request)})
        except ExportError as error:
            worker.write({"error": error.message, "hint": error.hint})


if __name__ == "__main__":
    main(*sys.argv[1:])
