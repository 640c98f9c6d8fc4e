"""Our engine of ``tunesmith serve`` against the llama.cpp server that it drives, and what adapters cost in memory.

    python benchmarks/serve_engine.py [--model FILE.gguf] [--slots 4] [--rounds 3] [--out FILE.json]

Bare is the same process, asked by a client that does as little as one can: a socket, lines counted, nothing read of them. Ours
is ``LlamaCppEngine.answer``, every piece of it. The two take turns, at 1, 4 and 16 clients, on prompts that are all different.
Figures are ratios of medians; a busy machine moves both.

Memory is that of the process (private pages and those it maps, ``Pss``) after an answer of each adapter, with one adapter of
rank 16 on every linear layer of every block, and with eight.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tunesmith import hardware
from tunesmith.engines.base import open_base
from tunesmith.serve.asking import Ask, Piece, Sampling
from tunesmith.serve.llama_cpp_engine import LlamaCppEngine, Room

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

import lora_gguf  # noqa: E402

CLIENTS = (1, 4, 16)
PROMPT, ANSWER = 128, 32  # tokens
RANK = 16
LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
Timed = tuple[float, int]  # seconds to the first piece, tokens
Client = Callable[[Ask], Awaitable[Timed]]


def write_lora(base: Path, target: Path, seed: int, rank: int = RANK, size: float = 0.02) -> None:
    """A drawn adapter on every linear layer of every block."""
    lora_gguf.write_lora(base, target, seed, layers=LINEAR, rank=rank, alpha=rank, size=size)


def asks(clients: int, vocabulary: int, seed: int) -> list[list[Ask]]:
    """Three prompts a client, at least twelve in all, none like another."""
    generator = np.random.default_rng(seed)
    each = max(3, 12 // clients)
    never_ends = Sampling(logit_bias={0: -1000.0, 2: -1000.0})
    draw = lambda: tuple(generator.integers(100, vocabulary, PROMPT).tolist())  # noqa: E731
    return [[Ask(prompt=draw(), max_tokens=ANSWER, sampling=never_ends) for _ in range(each)] for _ in range(clients)]


async def bare(engine: LlamaCppEngine, ask: Ask) -> Timed:
    """One request over a socket of its own."""
    process = engine._process
    assert process is not None
    lora = [{"id": place, "scale": 0.0} for place in range(len(engine._files.adapters))]
    bias = [[token, value] for token, value in ask.sampling.logit_bias.items()]
    body: dict[str, Any] = {"prompt": ask.prompt, "n_predict": ask.max_tokens, "stream": True, "temperature": 0.0}
    content = json.dumps(body | {"lora": lora, "logit_bias": bias}).encode()
    url = urlsplit(process.facts.url)
    began, first, lines = time.perf_counter(), 0.0, 0
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {process.key}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    async for line in reader:
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - began
            lines += 1
    writer.close()
    return first, lines - 1  # the last says the end


async def ours(engine: LlamaCppEngine, ask: Ask, renderer: Any) -> Timed:
    """The same by the engine."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    async for piece in engine.answer(None, ask, renderer):
        first = first or time.perf_counter() - began
        tokens = tokens if isinstance(piece, Piece) else piece.new_tokens
    return first, tokens


async def crowd(client: Client, work: list[list[Ask]]) -> dict[str, float]:
    """All clients at once, each its asks in turn."""

    async def one(own: list[Ask]) -> list[Timed]:
        return [await client(ask) for ask in own]

    began = time.perf_counter()
    answers = [timed for own in await asyncio.gather(*map(one, work)) for timed in own]
    seconds = time.perf_counter() - began
    firsts = sorted(first for first, _ in answers)
    return {
        "tokens_per_second": sum(tokens for _, tokens in answers) / seconds,
        "p50_first": statistics.median(firsts),
        "p95_first": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
    }


async def compare(model: Path, slots: int, rounds: int) -> list[dict[str, Any]]:
    """Both, in turn."""
    renderer = open_base(model).renderer
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        lora = Path(folder) / "one.gguf"
        write_lora(model, lora, 0)
        engine = await LlamaCppEngine.start(model, [lora], Room(slots=slots, context=512), renderer)
        ways: dict[str, Client] = {"bare": lambda ask: bare(engine, ask), "ours": lambda ask: ours(engine, ask, renderer)}
        for clients in CLIENTS:
            figures: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
            for number in range(rounds + 1):  # the first warms up
                for place, (name, way) in enumerate(ways.items()):
                    work = asks(clients, len(renderer.tokenizer), 1000 * number + 100 * place + clients)
                    figures[name].append(await crowd(way, work))
            medians = {
                name: {key: statistics.median(f[key] for f in figures[name][1:]) for key in figures[name][0]} for name in ways
            }
            pairs = zip(figures["ours"][1:], figures["bare"][1:], strict=True)
            ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
            entry = {"clients": clients, **medians, "ratio": statistics.median(ratios), "ratios": ratios}
            print(json.dumps(entry), flush=True)
            results.append(entry)
        await engine.close()
    return results


async def memory(model: Path, slots: int) -> dict[str, float]:
    """MB of the process with one adapter and with eight, after an answer of each."""
    renderer, found = open_base(model).renderer, {}
    with tempfile.TemporaryDirectory() as folder:
        loras = [Path(folder) / f"{number}.gguf" for number in range(8)]
        for number, lora in enumerate(loras):
            write_lora(model, lora, number)
        for count in (1, 8):
            engine = await LlamaCppEngine.start(model, loras[:count], Room(slots=slots, context=1024), renderer)
            for place in range(count):
                (ask,) = asks(1, len(renderer.tokenizer), place)[0][:1]
                assert [piece async for piece in engine.answer(place, ask, renderer)]
            rollup = Path(f"/proc/{engine.pid}/smaps_rollup").read_text()
            found[str(count)] = next(int(line.split()[1]) / 1e3 for line in rollup.splitlines() if line.startswith("Pss:"))
            await engine.close()
        found["adapter_file"] = loras[0].stat().st_size / 1e6
    found["ratio"] = found["8"] / found["1"]
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of llama.cpp; as many as cores when not given")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads is not None:
        hardware.physical_cores = lambda: options.threads
    result = {
        "command": f"benchmarks/serve_engine.py {' '.join(sys.argv[1:])}",
        "model": options.model.name,
        "slots": options.slots,
        "memory_mb": asyncio.run(memory(options.model, options.slots)),
        "load": asyncio.run(compare(options.model, options.slots, options.rounds)),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
