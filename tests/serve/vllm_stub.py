"""A server that behaves as vLLM 0.32 was measured to: adapters by name and path, its streams, its traps.

What an answer says follows from the base or from the adapter's file, as it was when its name and path were first asked: keys
and values are kept by these two. An adapter whose metadata says ``ignored`` answers as the base.
"""

import json
import threading
from hashlib import sha256
from pathlib import Path

import uvicorn
from safetensors import safe_open
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

BASE = "base/model"
SEPARATOR = "\u2028"  # behind the first token of every answer: it ends no line of a stream


class VllmStub:
    """``with VllmStub(tokenizer) as stub`` runs it at ``stub.url``.

    Attributes:
        calls: what was asked, in order: a word, and the adapter or the whole request.
        loaded: path of each adapter by its name; cleared as by a restart.
        breaks: whether the next stream ends in its middle.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.calls, self.loaded, self.breaks = tokenizer, [], {}, False
        self._kept = {}
        routes = [
            Route("/v1/models", self._models),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        self._server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()

    async def _models(self, request: Request):
        entries = [{"id": BASE, "root": BASE, "parent": None, "max_model_len": 1024}]
        entries += [{"id": name, "root": path, "parent": BASE} for name, path in self.loaded.items()]
        return JSONResponse({"object": "list", "data": entries})

    async def _tokenize(self, request: Request):
        body = await request.json()
        return JSONResponse({"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]})

    async def _load(self, request: Request):
        body = await request.json()
        name = body["lora_name"]
        self.calls.append(("load", name))
        if name in self.loaded or name == BASE:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return _error(404, f"No adapter found for {name}")
        self.loaded[name] = body["lora_path"]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request):
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if self.loaded.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _completions(self, request: Request):
        body = await request.json()
        self.calls.append(("ask", body))
        name = body["model"]
        if name != BASE and name not in self.loaded:
            return _error(404, f"The model `{name}` does not exist.")
        return StreamingResponse(self._stream(body, self._seed(name)), media_type="text/event-stream")

    def _seed(self, name):
        if name == BASE:
            return b"base"
        place = (name, self.loaded[name])
        if place not in self._kept:
            file = Path(self.loaded[name]) / "adapter_model.safetensors"
            with safe_open(file, "pt") as opened:
                ignored = "ignored" in (opened.metadata() or {})
            self._kept[place] = b"base" if ignored else file.read_bytes()
        return self._kept[place]

    async def _stream(self, body, seed):
        digest = sha256(seed + json.dumps(body["prompt"]).encode()).digest()
        count = min(body["max_tokens"], len(digest))
        for place in range(count):
            number = 300 + digest[place]
            text = self.tokenizer.decode([number]) + (SEPARATOR if place == 0 else "")
            choice = {"index": 0, "text": text, "finish_reason": None, "stop_reason": None}
            if "logprobs" in body:
                token, logprob = f"token_id:{number}", -digest[place] / 256
                tops = [{token: logprob, "token_id:5": -9.0}]
                choice["logprobs"] = {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": tops, "text_offset": [0]}
            if place == count - 1:
                choice["finish_reason"] = "length"
            yield _event({"choices": [choice], "usage": None})
            if self.breaks:
                self.breaks = False
                return
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": count,
            "prompt_tokens_details": {"cached_tokens": 16},
        }
        yield _event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def _event(event):
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _error(status, message):
    return JSONResponse({"error": {"message": message, "type": "x", "code": status}}, status)
