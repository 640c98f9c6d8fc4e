"""Models that answer by a script, behind the real front on a loopback port."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import replace

import openai
import uvicorn

from tunesmith.errors import RunError
from tunesmith.serve.application import front
from tunesmith.serve.asking import End, EngineGone, Likely, Piece, Served, Token


def served(renderer, name="base", **changes):
    """A model to be served."""
    model = Served(
        name=name,
        created=1_700_000_000,
        parent=None if name == "base" else "base",
        version=f"version of {name}",
        context=1024,
        renderer=renderer,
        system=None,
        max_new_tokens=64,
        form="one file",
    )
    return replace(model, **changes)


def said(text, reason="stop", size=3):
    """A script: this text in pieces of a few characters."""

    def script(ask, model):
        shown = text if isinstance(text, str) else text(ask, model)
        yield from (Piece(shown[start : start + size]) for start in range(0, len(shown), size))
        yield End(reason, len(ask.prompt), 1, len(shown))

    return script


def with_tokens(ask, model):
    """A script: two characters, the second in two tokens, with their probabilities."""
    top = (Likely(5, b"a", -0.5), Likely(6, b"b", float("-inf")))[: ask.logprobs or 0]
    yield Piece("a", (Token(Likely(5, b"a", -0.5), top),))
    yield Piece("\u00e9", (Token(Likely(7, b"\xc3", -1.0), top), Token(Likely(8, b"\xa9", -2.0), top)))
    yield End("stop", len(ask.prompt), 0, 4)


class FakeModels:
    """See ``asking.Models``. ``script`` yields pieces, ends, seconds to wait, and errors to raise."""

    def __init__(self, *models):
        self.models = {model.name: model for model in models}
        self.script = said(lambda ask, model: f"said by {model.name}")
        self.asks, self.running, self.most, self.closed = [], 0, 0, 0

    def served(self):
        return list(self.models.values())

    @contextlib.asynccontextmanager
    async def borrow(self, name):
        yield _Borrowed(self, self.models[name])

    async def add(self, run, name=None, *, force=False):
        if run.name == "dead":
            raise EngineGone("it was killed")
        if not force and "bad" in run.name:
            raise RunError(f"{run.name}: verdict prompting is enough", "serve it with force")
        self.models[name or run.name] = served(self.models["base"].renderer, name or run.name, run=run)
        return self.models[name or run.name]

    async def remove(self, name):
        del self.models[name]


class _Borrowed:
    def __init__(self, models, model):
        self._models, self.served = models, model

    async def answer(self, ask):
        models = self._models
        models.asks.append(ask)
        models.running += 1
        models.most = max(models.most, models.running)
        try:
            for step in models.script(ask, self.served):
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    await asyncio.sleep(0)
                    yield step
        finally:
            models.running -= 1
            models.closed += 1


class Running:
    """A front that runs in a thread, with its address, its house and a client."""

    def __init__(self, models, shadow=None, **keywords):
        ready = threading.Event()
        self.models, self.socket = models, socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.url = f"http://{self.address}"

        async def serve():
            self.front = front(models, answered=None if shadow is None else shadow.answered, **keywords)
            config = uvicorn.Config(self.front.app, http="h11", lifespan="off", log_config=None, access_log=False)
            self.server = uvicorn.Server(config)
            async with contextlib.nullcontext() if shadow is None else shadow.at_work(models, self.front.house):
                ready.set()
                await self.server.serve(sockets=[self.socket])

        self.thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self.thread.start()
        ready.wait()

    def client(self, key="none", **keywords):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, **keywords})

    def wait_until(self, holds):
        """Until something is so; the server is another thread."""
        for _ in range(2000):
            if holds():
                return
            time.sleep(0.005)
        raise AssertionError("it never became so")

    def close(self):
        self.server.should_exit = True  # its thread ends on its own


@contextlib.contextmanager
def running(models, **keywords):
    """A front until the block ends."""
    server = Running(models, **keywords)
    try:
        yield server
    finally:
        server.close()
