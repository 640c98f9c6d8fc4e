"""``tunesmith serve`` over HTTP against the llama.cpp server behind it; and ten thousand requests, good and bad.

    python benchmarks/serve_front.py load [--model FILE.gguf] [--slots 4] [--rounds 3] [--out FILE.json]
    python benchmarks/serve_front.py soak [--requests 10000] [--out FILE.json]

*Load.* One process of llama.cpp, asked directly and through our front, which runs in a process of its own. Both stream chat
completions, from text to text: each renders, encodes and writes chunks by its own code. They take turns, at 1, 4 and 16
clients, on prompts that are all different; figures are medians, the ratio is the median of the rounds' ratios. On a machine
that others use, the ratio that holds is that of CPU time: what llama.cpp takes for a token when it is asked directly, over
what it and the front take together. Cores that are all busy answer by that.

*Soak.* Four of ten requests are wrong in a way of their own, the others ask the base and two adapters of a tiny model in any
order. Every good answer is held against that of an engine with one adapter alone; the memory of the front is read as it goes.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from tunesmith import hardware

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "benchmarks")]
CLIENTS = (1, 4, 16)
PROMPT, ANSWER = 48, 32  # words, tokens
TURN = "<s>{{ m.role }} {{ m.content }}</s>"
TEMPLATE = f"{{% for m in messages %}}{TURN}{{% endfor %}}{{% if add_generation_prompt %}}<s>assistant {{% endif %}}"


class OneEngine:
    """``asking.Models``: a base and adapters on one engine, without runs."""

    def __init__(self, engine: Any, models: Sequence[Any]):
        self._engine, self._models = engine, {model.name: (model, place) for place, model in enumerate(models, start=-1)}

    def served(self) -> list[Any]:
        """All of them."""
        return [model for model, _ in self._models.values()]

    @asynccontextmanager
    async def borrow(self, name: str) -> AsyncIterator[Any]:
        """One of them."""
        model, place = self._models[name]
        yield Borrowed(self._engine, model, None if place < 0 else place)

    async def close(self) -> None:
        """End the engine."""
        await self._engine.close()


class Borrowed:
    """``asking.Borrowed``."""

    def __init__(self, engine: Any, served: Any, place: int | None):
        self._engine, self.served, self._place = engine, served, place

    def answer(self, ask: Any) -> Any:
        """Pieces and an end."""
        return self._engine.answer(self._place, ask, self.served.renderer)


async def front_of(model: Path, adapters: Sequence[Path], slots: int, context: int) -> None:
    """A front in this process: its address and llama.cpp's on standard output, until a signal."""
    from tunesmith.engines.base import open_base
    from tunesmith.serve.asking import Served
    from tunesmith.serve.limits import Limits
    from tunesmith.serve.llama_cpp_engine import LlamaCppEngine, Room
    from tunesmith.serve.run_server import ServerSettings, serve

    renderer = open_base(model).renderer
    engine = await LlamaCppEngine.start(model, adapters, Room(slots=slots, context=context), renderer)
    models = [
        Served(
            name=name,
            created=0,
            parent=None if name == "base" else "base",
            version=name,
            context=engine.context,
            renderer=renderer,
            system=None,
            max_new_tokens=ANSWER,
            form="GGUF",
        )
        for name in ("base", *(adapter.stem for adapter in adapters))
    ]

    async def opened() -> Any:
        return OneEngine(engine, models)

    def ready(url: str, _: Any) -> None:
        process = engine._process
        assert process is not None
        facts = {"url": url, "bare": process.facts.url, "key": process.key, "stops": renderer.stop_ids, "pid": process.pid}
        print(json.dumps(facts), flush=True)

    await serve(opened, ServerSettings(port=0, limits=Limits(slots=slots, queue=256)), ready)


class Front:
    """The same in a child process."""

    def __init__(self, model: Path, adapters: Sequence[Path], slots: int, context: int):
        arguments = [str(model), *map(str, adapters), "--slots", str(slots), "--context", str(context)]
        arguments += ["--threads", str(hardware.physical_cores())]
        command = [sys.executable, __file__, "front", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.facts = json.loads(self.process.stdout.readline())

    @property
    def resident(self) -> float:
        """MB of the front's process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))

    @property
    def seconds(self) -> tuple[float, float]:
        """CPU time of the front and of llama.cpp."""
        front, engine = (_seconds(pid) for pid in (self.process.pid, self.facts["pid"]))
        return front, engine

    def close(self) -> int:
        """End it; its exit code."""
        self.process.terminate()
        return self.process.wait(30)


def _seconds(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def streamed(http: httpx2.AsyncClient, url: str, body: dict[str, Any], key: str) -> tuple[float, int]:
    """Seconds to the first token, and tokens, of a streamed chat completion."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    headers = {"Authorization": f"Bearer {key}"}
    async with http.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                first = first or time.perf_counter() - began
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return first, tokens


async def crowd(url: str, key: str, stops: list[int], clients: int, seed: int) -> dict[str, float]:
    """All clients at once, each some chats in turn."""
    generator = random.Random(seed)
    words = (ROOT / "README.md").read_text().split()

    def body() -> dict[str, Any]:
        text = " ".join(generator.choices(words, k=PROMPT))
        return {
            "model": "base",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": ANSWER,
            "temperature": 0,
            "logit_bias": {str(stop): -100 for stop in stops},
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)  # both servers close what is idle for 5 s
    async with httpx2.AsyncClient(timeout=None, limits=limits) as http:

        async def one() -> list[tuple[float, int]]:
            return [await streamed(http, url, body(), key) for _ in range(max(2, 8 // clients))]

        began = time.perf_counter()
        answers = [timed for own in await asyncio.gather(*(one() for _ in range(clients))) for timed in own]
    firsts, seconds = sorted(first for first, _ in answers), time.perf_counter() - began
    return {
        "tokens": sum(tokens for _, tokens in answers),
        "tokens_per_second": sum(tokens for _, tokens in answers) / seconds,
        "p50_first": statistics.median(firsts),
        "p95_first": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
    }


async def load(model: Path, slots: int, rounds: int) -> list[dict[str, Any]]:
    """Ours and bare, in turn."""
    front, results = Front(model, (), slots, 512), []
    facts = front.facts
    for clients in CLIENTS:
        figures: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
        for number in range(rounds + 1):  # the first warms up
            for place, (name, url) in enumerate((("bare", facts["bare"]), ("ours", facts["url"]))):
                seed = 1000 * number + 100 * place + clients
                before = front.seconds
                found = await crowd(url, facts["key"], facts["stops"], clients, seed)
                front_s, engine_s = (after - then for after, then in zip(front.seconds, before, strict=True))
                tokens = found.pop("tokens")
                found |= {"front_ms_per_token": 1e3 * front_s / tokens, "engine_ms_per_token": 1e3 * engine_s / tokens}
                figures[name].append(found)
                print(clients, name, json.dumps(figures[name][-1]), file=sys.stderr, flush=True)
        medians = {name: {key: statistics.median(f[key] for f in fs[1:]) for key in fs[0]} for name, fs in figures.items()}
        pairs = zip(figures["ours"][1:], figures["bare"][1:], strict=True)
        ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
        ours = medians["ours"]["engine_ms_per_token"] + medians["ours"]["front_ms_per_token"]
        entry = {
            "clients": clients,
            **medians,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "ratio_of_cpu": medians["bare"]["engine_ms_per_token"] / ours,
        }
        print(json.dumps(entry), flush=True)
        results.append(entry)
    front.close()
    return results


WRONG: list[tuple[int, Any]] = [
    (400, {"temprature": 1}),
    (400, {"messages": []}),
    (400, {"messages": [{"role": "banana", "content": "a"}]}),
    (400, {"messages": [{"role": "user", "content": "ab " * 200}]}),
    (400, {"temperature": "hot"}),
    (400, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}}),
    (404, {"model": "nobody"}),
    (400, b'{"model": '),
    (413, b" " * (5 * 1024 * 1024)),
    (0, "gone"),  # a client that goes in the middle
]


async def soak(requests: int) -> dict[str, Any]:
    """Good and bad requests by 16 clients."""
    from serve_engine import write_lora

    from tiny_gguf import write_tiny_gguf

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        model, adapters = Path(folder) / "tiny.gguf", [Path(folder) / f"{name}.gguf" for name in ("one", "two")]
        write_tiny_gguf(model, TEMPLATE)
        for number, adapter in enumerate(adapters):
            write_lora(model, adapter, number, size=0.5)
        prompts = ["".join(random.Random(n).choices("ab ", k=8)) for n in range(16)]
        expected = await _alone(model, adapters, prompts)
        front = Front(model, adapters, 4, 64)
        numbers, memory = iter(range(requests)), []
        async with httpx2.AsyncClient(base_url=front.facts["url"], timeout=120) as http:

            async def client() -> None:
                for number in numbers:
                    await _one(http, number, prompts, expected, counts)
                    if number % (requests // 10) == requests // 10 - 1:
                        memory.append(round(front.resident, 1))

            began = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(16)))
            seconds = time.perf_counter() - began
            alive = (await http.get("/health")).status_code
        ended = front.close()
    distinct = len(set(expected.values()))
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "counts": dict(counts),
        "distinct_answers": distinct,
        "health": alive,
        "exit_code": ended,
        "front_mb": memory,
    }


async def _alone(model: Path, adapters: Sequence[Path], prompts: Sequence[str]) -> dict[tuple[str, str], str]:
    """The answers of engines with one adapter or none."""
    expected: dict[tuple[str, str], str] = {}
    for adapter in (None, *adapters):
        front = Front(model, () if adapter is None else (adapter,), 1, 64)
        name = "base" if adapter is None else adapter.stem
        async with httpx2.AsyncClient(base_url=front.facts["url"], timeout=120) as http:
            for prompt in prompts:
                expected[name, prompt] = await _said(http, name, prompt)
        front.close()
    return expected


async def _said(http: httpx2.AsyncClient, name: str, prompt: str) -> str:
    body = {"model": name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
    reply = await http.post("/v1/chat/completions", json=body)
    return reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else f"status {reply.status_code}"


async def _one(
    http: httpx2.AsyncClient,
    number: int,
    prompts: Sequence[str],
    expected: dict[tuple[str, str], str],
    counts: Counter[str],
) -> None:
    """A request, and what came of it."""
    generator = random.Random(number)
    name, prompt = generator.choice(("base", "one", "two")), generator.choice(prompts)
    if number % 10 < 6:
        right = await _said(http, name, prompt) == expected[name, prompt]
        counts["right" if right else "WRONG"] += 1
        return
    status, wrong = WRONG[generator.randrange(len(WRONG))]
    body = {"model": name, "messages": [{"role": "user", "content": prompt}], "stream": wrong == "gone"}
    if wrong == "gone":
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_bytes():
                break
        counts["gone"] += 1
        return
    sent: dict[str, Any] = {"content": wrong} if isinstance(wrong, bytes) else {"json": body | wrong}
    reply = await http.post("/v1/chat/completions", **sent)
    counts["refused" if reply.status_code == status and "error" in reply.json() else f"STATUS {reply.status_code}"] += 1


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("load", "soak", "front"))
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of llama.cpp; as many as cores when not given")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads is not None:
        hardware.physical_cores = lambda: options.threads
    if options.what == "front":
        asyncio.run(front_of(options.files[0], options.files[1:], options.slots, options.context))
        return
    figures = load(options.model, options.slots, options.rounds) if options.what == "load" else soak(options.requests)
    result = {"command": f"benchmarks/serve_front.py {' '.join(sys.argv[1:])}", "figures": asyncio.run(figures)}
    print(json.dumps(result), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
