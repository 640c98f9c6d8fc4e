"""Many clients, many adapters, one process: is any answer that of another adapter?

    python benchmarks/serve_soak.py [--model FILE.gguf] [--adapters 8] [--clients 16] [--requests 2000] [--out FILE.json]

Every answer is held against the one that the adapter gives by itself: an engine that has this adapter alone, and one slot. What
differs must be a tie: the first other token is one that the adapter by itself holds for as likely as its own within ``TIE``
nats (a kernel for several tokens rounds otherwise than one for a single token). What is farther off, begins with the adapter's
own first token as likely as alone, and is no other adapter's answer, counts as ``off``; all else as ``wrong``. The adapters are
drawn so large that the answer of one would be wrong for another, or in a few cases a tie; that is checked first.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from serve_engine import ROOT, write_lora

from tunesmith import hardware
from tunesmith.chat.render import Renderer
from tunesmith.engines.base import open_base
from tunesmith.serve.asking import Ask, Piece, Token
from tunesmith.serve.llama_cpp_engine import LlamaCppEngine, Room

# Nats. A token of SmolLM2 in Q4_1 that is computed together with other requests' was off by 0.23 at most, with adapters this
# large, and the first token of an answer by nothing. Those of other adapters are off by more.
TIE, FIRST = 0.3, 0.02
QUESTIONS = (
    "a red car",
    "Name three rivers of Europe.",
    "What is 17 times 3?",
    "Who wrote Hamlet, and when was it first played?",
)
Answer = tuple[Token, ...]


async def answer(engine: LlamaCppEngine, place: int | None, ask: Ask, renderer: Renderer) -> Answer:
    """The tokens of an answer, with the likeliest in their places."""
    tokens: list[Token] = []
    async for piece in engine.answer(place, ask, renderer):
        tokens += piece.tokens if isinstance(piece, Piece) else ()
    return tuple(tokens)


def verdict(answer: Answer, alone: Answer) -> str:
    """``same``, ``tie`` or ``wrong``."""
    for token, own in zip(answer, alone, strict=False):
        if token.taken.id != own.taken.id:
            as_likely = {likely.id for likely in own.top if own.taken.logprob - likely.logprob <= TIE}
            return "tie" if token.taken.id in as_likely else "wrong"
        if abs(token.taken.logprob - own.taken.logprob) > TIE:
            return "wrong"
    return "same" if len(answer) == len(alone) else "wrong"


async def soak(
    model: Path, renderer: Renderer, *, adapters: int, clients: int, requests: int, slots: int, tokens: int, size: float
) -> dict[str, Any]:
    """See the top of the file.

    Args:
        requests: of all clients together.
        tokens: of an answer at most.
        size: standard deviation of the adapters' factors.
    """
    asks = [
        Ask(prompt=tuple(renderer.prompt_ids([{"role": "user", "content": text}])), max_tokens=tokens, logprobs=10)
        for text in QUESTIONS
    ]
    alone: dict[tuple[int | None, int], Answer] = {}
    with tempfile.TemporaryDirectory() as folder:
        loras = [Path(folder) / f"{number}.gguf" for number in range(adapters)]
        for number, lora in enumerate(loras):
            write_lora(model, lora, number, rank=8, size=size)
        for place in (None, *range(adapters)):
            own = [] if place is None else loras[place : place + 1]
            engine = await LlamaCppEngine.start(model, own, Room(slots=1, context=256), renderer)
            for number, ask in enumerate(asks):
                alone[place, number] = await answer(engine, None if place is None else 0, ask, renderer)
            await engine.close()
        apart = Counter(
            verdict(alone[other, number], own)
            for (place, number), own in alone.items()
            for other in range(adapters)
            if other != place
        )
        assert not apart["same"] and apart["tie"] <= 0.1 * apart["wrong"], f"draw larger adapters: {apart}"
        engine = await LlamaCppEngine.start(model, loras, Room(slots=slots, context=256), renderer)
        drawn, found, wrong = random.Random(0), Counter[str](), list[dict[str, Any]]()
        work = iter([(drawn.choice((None, *range(adapters))), drawn.randrange(len(asks))) for _ in range(requests)])

        async def client() -> None:
            for place, number in work:
                tokens = await answer(engine, place, asks[number], renderer)
                result = verdict(tokens, alone[place, number])
                if result == "wrong":
                    wrong.append(_described(tokens, place, number, alone))
                    result = wrong[-1]["kind"]
                found[result] += 1

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - began
        await engine.close()
    counts = {kind: found[kind] for kind in ("same", "tie", "off", "wrong")}
    told = {"seconds": round(seconds, 1), "of_other_adapters": dict(apart), "others": wrong}
    return {"requests": requests, **counts, **told}


def _described(answer: Answer, place: int | None, number: int, alone: dict[tuple[int | None, int], Answer]) -> dict[str, Any]:
    """An answer that is far from its own: whose it is instead, if anybody's, and how far."""
    own = alone[place, number]
    pairs = [(a.taken, b.taken) for a, b in zip(answer, own, strict=False)]
    others = [other for other, asked in alone if asked == number and verdict(answer, alone[other, number]) == "same"]
    told = [[token.taken.id, round(token.taken.logprob, 3)] for token in answer]
    expected = [[token.taken.id, round(token.taken.logprob, 3)] for token in own]
    same = [abs(a.logprob - b.logprob) for a, b in pairs if a.id == b.id]
    begins_as_own = pairs and pairs[0][0].id == pairs[0][1].id and same[0] <= FIRST
    kind = "off" if begins_as_own and not others else "wrong"
    of = {"adapter": place, "question": number, "kind": kind, "of": others}
    return {**of, "said": told, "alone": expected, "off_by": max(same, default=None)}


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    counts = {"adapters": 8, "clients": 16, "requests": 2000, "slots": 4, "tokens": 4}
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--size", type=float, default=0.1, help="standard deviation of the adapters' factors")
    parser.add_argument("--threads", type=int, help="of llama.cpp; as many as cores when not given")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads is not None:
        hardware.physical_cores = lambda: options.threads
    given = {name: vars(options)[name] for name in counts}
    found = asyncio.run(soak(options.model, open_base(options.model).renderer, size=options.size, **given))
    result = {"command": f"benchmarks/serve_soak.py {' '.join(sys.argv[1:])}", "model": options.model.name, **found}
    print(json.dumps(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
