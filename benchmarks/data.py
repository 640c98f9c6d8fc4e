"""How fast the data stage is, on a generated JSONL of chats: check, convert, near duplicates, rendering, packing.

    python benchmarks/data.py --megabytes 1000                  # the figures of the README: about 1M rows, 2 GB of disk
    python benchmarks/data.py --megabytes 30 --only near,pack   # a quick look

The rows are seeded: the same words, the same duplicates on every machine. Each measurement runs in a process of its own,
so that its peak memory is its own (``VmHWM``: unlike ``ru_maxrss`` it does not inherit the peak of the process that
started it), pinned to one core where the claim is per core and to two where it is for two. The file was written just
before: it comes from the page cache, so the figures are of our work and not of the disk. Rendering is measured against
a bare ``tokenizer(texts)`` on the very texts that were rendered, in one process, in turn, on all cores.

A table goes to stdout, and the figures as JSON to ``benchmarks/results/data-DATE.json`` (or ``--out``).
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("numpy", "rensa", "jiter", "pyarrow", "tokenizers", "transformers")
SEED = 0
VOCABULARY = 40_000
CHATS = 4_000  # rendered
ROUNDS = 7
DOCUMENTS = 1_000_000  # packed

Figures = dict[str, Any]


def words(count: int, seed: int) -> list[str]:
    """A vocabulary made of syllables, the commonest words short, one in fifty not ASCII."""
    rng = random.Random(seed)
    syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "", "n", "r", "s", "t")]
    others = ["é", "ü", "ñ", "ß", "ж", "д", "語", "文", "中", "한", "🙂", "🚀"]
    found: dict[str, None] = {}
    while len(found) < count:
        size = 1 + min(3, len(found) // 400) if len(found) < 2000 else rng.randint(2, 4)
        word = "".join(rng.choices(syllables, k=size))
        found[word + rng.choice(others) if rng.random() < 0.02 else word] = None
    return list(found)


def stream(rng: np.random.Generator) -> Iterator[str]:
    """Words without end, with the frequencies of a language (Zipf's law)."""
    vocabulary = np.array(words(VOCABULARY, SEED), object)
    shares = 1 / (np.arange(VOCABULARY) + 2.7)
    edges = np.cumsum(shares / shares.sum())
    while True:
        drawn = np.minimum(np.searchsorted(edges, rng.random(1 << 16)), VOCABULARY - 1)
        yield from vocabulary[drawn].tolist()


def chats(seed: int) -> Iterator[list[dict[str, str]]]:
    """Conversations of about 1 KB: 1 to 4 exchanges, one in five with a system turn.

    Two in a hundred repeat an earlier one exactly, five in a hundred its first question with a word or two changed.
    """
    rng = random.Random(seed)
    source = stream(np.random.default_rng(seed))
    systems = [" ".join(next(source) for _ in range(rng.randint(8, 40))) for _ in range(20)]
    past: list[list[dict[str, str]]] = []

    def text(median: float) -> str:
        count = max(2, min(600, round(rng.lognormvariate(0, 0.6) * median)))
        parts = [next(source) for _ in range(count)]
        for end in range(rng.randint(8, 16), count, 12):
            parts[end] += rng.choice([".", ",", "?", ".\n"])
        return " ".join(parts).capitalize() + "."

    while True:
        chance = rng.random()
        if past and chance < 0.02:
            yield rng.choice(past)
            continue
        exchanges = rng.choices([1, 2, 3, 4], [5, 3, 1, 1])[0]
        messages = [{"role": "system", "content": rng.choice(systems)}] if rng.random() < 0.2 else []
        for _ in range(exchanges):
            messages.append({"role": "user", "content": text(38 / exchanges**0.7)})
            messages.append({"role": "assistant", "content": text(56 / exchanges**0.7)})
        if past and chance < 0.07:
            earlier = rng.choice(past)
            for message, old in zip(messages, earlier, strict=False):
                if message["role"] == old["role"] == "user":
                    parts = old["content"].split(" ")
                    parts[rng.randrange(len(parts))] = next(source)
                    message["content"] = " ".join(parts)
        if len(past) < 5000:
            past.append(messages)
        else:
            past[rng.randrange(5000)] = messages
        yield messages


def generate(path: Path, megabytes: float) -> int:
    """Write rows until the file has this size; returns their number."""
    rows = size = 0
    with path.open("wb") as file:
        for messages in chats(SEED):
            size += file.write(json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n")
            rows += 1
            if size >= megabytes * 1e6:
                return rows
    raise AssertionError("chats without end")


def measure_check(path: Path) -> Figures:
    """The whole check without the search for near duplicates, one core."""
    from tunesmith.pipeline.check import check

    started = time.perf_counter()
    check(path, near=False)
    return _throughput(path, started)


def measure_convert(path: Path) -> Figures:
    """Reading, checking and writing ``messages`` JSONL, one core."""
    from tunesmith.data.convert import convert

    target = path.with_name("converted.jsonl")
    started = time.perf_counter()
    convert(path, target)
    figures = _throughput(path, started)
    target.unlink()
    return figures


def measure_near(path: Path) -> Figures:
    """Reading and the search for near duplicates, two cores."""
    from tunesmith.data.near import NearDuplicates
    from tunesmith.data.places import Places
    from tunesmith.data.read import Reader

    started = time.perf_counter()
    near = NearDuplicates()
    places, rows = Places(), 0
    adding = 0.0
    for batch in Reader(path).batches():
        places.add(batch)
        rows += len(batch)
        before = time.perf_counter()
        near.add(batch)
        adding += time.perf_counter() - before
    before = time.perf_counter()
    report = near.report(places.find)
    linking = time.perf_counter() - before
    figures = _throughput(path, started)
    found = {"clusters": report.clusters, "rows_in_clusters": report.rows}
    per_million = figures["seconds"] * 1e6 / rows
    return {**figures, "rows": rows, "signing": adding, "linking": linking, "seconds_per_million": per_million, **found}


def measure_render(path: Path, model: str) -> Figures:
    """Rendering and encoding against a bare tokenizer on the same texts, in turn, all cores."""
    from itertools import islice

    from tunesmith.chat.render import Conversation, Rendered, Renderer
    from tunesmith.checkpoints.resolve import find_model
    from tunesmith.data.read import Reader
    from tunesmith.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(find_model(model)))
    rows = list(islice(Reader(path), CHATS))
    conversations = [Conversation(row.messages, row.tools, row.kind) for row in rows]
    texts = [renderer.text(row.messages, row.tools) for row in rows]
    bare, ours = [], []
    tokens = 0
    for turn in range(ROUNDS + 1):
        before = time.perf_counter()
        encoded = renderer.tokenizer(texts, add_special_tokens=False)["input_ids"]
        between = time.perf_counter()
        rendered = renderer.render_batch(conversations)
        after = time.perf_counter()
        if turn:  # the first round warms both
            bare.append(between - before)
            ours.append(after - between)
            continue
        # A race between two that do not do the same is no measurement.
        assert all(isinstance(r, Rendered) and r.ids == ids for r, ids in zip(rendered, encoded, strict=True))
        tokens = sum(map(len, encoded))
    ratio = statistics.median(a / b for a, b in zip(bare, ours, strict=True))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds = statistics.median(ours)
    speed = {"bare_seconds": statistics.median(bare), "tokens_per_second": tokens / seconds, "ratio": ratio}
    return {"seconds": seconds, "megabytes": megabytes, "megabytes_per_second": megabytes / seconds, "rows": len(rows), **speed}


def measure_pack(path: Path) -> Figures:
    """Best-fit packing of 1M log-normal lengths, one core."""
    from tunesmith.data.pack import Plan

    lengths = np.random.default_rng(SEED).lognormal(5.6, 0.8, DOCUMENTS).clip(8, 2048).astype(np.int64)
    started = time.perf_counter()
    plan = Plan(lengths, epochs=1, tokens_per_step=16_384, max_length=2048, seed=SEED)
    first = plan[0]
    seconds = time.perf_counter() - started
    assert first[1]
    return {"seconds": seconds, "rows": DOCUMENTS, "fill": plan.fill, "steps": len(plan)}


# name: cores it is pinned to (None: all), and what is promised: (figure, at least or at most, value).
Claim = tuple[str, str, float]
MEASUREMENTS: dict[str, tuple[Callable[..., Figures], int | None, list[Claim]]] = {
    "check": (measure_check, 1, [("megabytes_per_second", ">=", 30), ("peak_megabytes", "<=", 700)]),
    "convert": (measure_convert, 1, [("megabytes_per_second", ">=", 30), ("peak_megabytes", "<=", 700)]),
    "near": (measure_near, 2, [("seconds_per_million", "<=", 60), ("peak_megabytes", "<=", 700)]),
    "render": (measure_render, None, [("ratio", ">=", 0.8)]),
    "pack": (measure_pack, 1, [("seconds", "<=", 10)]),
}


def _throughput(path: Path, started: float) -> Figures:
    seconds = time.perf_counter() - started
    megabytes = path.stat().st_size / 1e6
    return {"seconds": seconds, "megabytes": megabytes, "megabytes_per_second": megabytes / seconds}


def _peak_megabytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("no VmHWM in /proc/self/status")


def run_one(name: str, path: Path, model: str) -> None:
    """In a process of its own: pin, measure, print the figures as one line of JSON."""
    measure, cores, _ = MEASUREMENTS[name]
    if cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    figures = measure(path, model) if name == "render" else measure(path)
    used = len(os.sched_getaffinity(0))
    print(json.dumps({**figures, "cores": used, "peak_megabytes": _peak_megabytes()}))


def measured(names: list[str], path: Path, model: str) -> dict[str, Figures]:
    """Figures of each measurement; one that fails ends the benchmark."""
    results: dict[str, Figures] = {}
    for name in names:
        command = [sys.executable, str(Path(__file__).resolve()), "--measure", name, "--rows", str(path), "--model", model]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(line(name, results[name]), flush=True)
    return results


def line(name: str, figures: Figures) -> str:
    """A row of the table: seconds, speed, memory, and each promise with what was measured."""
    speed = f"{figures['megabytes_per_second']:8.1f}" if "megabytes_per_second" in figures else " " * 8
    promises = []
    for figure, sense, value in MEASUREMENTS[name][2]:
        held = figures[figure] >= value if sense == ">=" else figures[figure] <= value
        promises.append(f"{figure} {figures[figure]:.4g} {'ok' if held else 'MISSED'} ({sense} {value:g})")
    cores, peak = figures["cores"], figures["peak_megabytes"]
    return f"{name:<9}{figures['seconds']:10.2f} s{speed} MB/s{peak:8.0f} MB{cores:3} cores   {'; '.join(promises)}"


def machine() -> dict[str, Any]:
    """Date, processor and versions: what a figure means nothing without."""
    models = [text.split(":")[1].strip() for text in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in text]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    """Generate, measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure the data stage on generated chats.")
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="comma-separated names")
    parser.add_argument("--model", default=str(MODEL), help="whose tokenizer and template render is measured with")
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/data-DATE.json)")
    parser.add_argument("--keep", action="store_true", help="keep the generated rows and say where")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        run_one(given.measure, given.rows, given.model)
        return
    names = given.only.split(",")
    if unknown := sorted(set(names) - MEASUREMENTS.keys()):
        parser.error(f"unknown: {', '.join(unknown)}; expected {', '.join(MEASUREMENTS)}")
    where = machine()
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-benchmark-"))
    try:
        path = folder / "rows.jsonl"
        rows = generate(path, given.megabytes)
        size = path.stat().st_size / 1e6
        print(f"{where['cpu']}, {where['cores']} cores; {rows:,} rows, {size:,.0f} MB, {size * 1e6 / rows:.0f} bytes a row")
        results = measured(names, path, given.model)
    finally:
        if given.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    target = given.out or ROOT / "benchmarks" / "results" / f"data-{where['date'][:10]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: {k: round(v, 4) if isinstance(v, float) else v for k, v in f.items()} for name, f in results.items()}
    target.write_text(json.dumps({**where, "rows": rows, "megabytes": round(size, 1), "results": rounded}, indent=2) + "\n")
    print(f"written: {target}")


if __name__ == "__main__":
    main()
