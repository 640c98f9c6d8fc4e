"""How fast a GGUF is quantised: our path from file to file against the bare library call on the same rows.

    python benchmarks/quantize.py                                    # 64M weights a type; a few minutes
    python benchmarks/quantize.py --quick                            # 1M weights, one round: does it run?
    python benchmarks/quantize.py --llama-quantize PATH              # llama.cpp's own program beside it

One matrix of 4,096 columns, normal values in fp16, is quantised to Q4_K, Q6_K and IQ4_XS. ``bare`` is ``ggml_quantize_chunk``
over rows that lie in memory in fp32, on one core: nothing that calls the library can be faster. ``ours`` reads the file,
widens, quantises and writes, pinned to one core, then on all of them. The claim is that ours, a core, is at least 50M weights/s
of Q4_K or the bare call's speed, whichever is lower, within a tenth. Rounds alternate, so that a slow minute of the machine
hits all; the figure is the median. The file was written just before and comes from the page cache.

A table goes to stdout, and the figures as JSON to ``benchmarks/results/quantize-DATE.json`` (or ``--out``).
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from tunesmith import hardware
from tunesmith.checkpoints.gguf_write.quantize import ggml, quantize

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 4096
TENSOR = "blk.0.attn_q.weight"  # gets the base type of every file type
KINDS = {"Q4_K": "Q4_K_M", "Q6_K": "Q6_K", "IQ4_XS": "IQ4_XS"}
TARGET = 50e6  # weights/s a core, of Q4_K
PACKAGES = ("xllamacpp", "gguf", "numpy")

Figures = dict[str, float]


def write_matrix(path: Path, weights: int) -> np.ndarray:
    """A GGUF with one fp16 matrix; returns the same rows in fp32."""
    x = np.random.default_rng(0).standard_normal((weights // COLUMNS, COLUMNS), np.float32).astype(np.float16)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(COLUMNS)
    writer.add_feed_forward_length(COLUMNS)
    writer.add_head_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor(TENSOR, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return x.astype(np.float32)


def timed(action: Callable[[], object], cores: set[int]) -> float:
    """Seconds of an action on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, before)


def measure(kind: str, source: Path, rows: np.ndarray, rounds: int, llama_quantize: str | None = None) -> Figures:
    """Weights a second of one type: ``bare``, ``ours``, ``ours_all_cores``, and ``llama_quantize`` where it is given."""
    target, file_type = source.with_name("made.gguf"), KINDS[kind]
    every = os.sched_getaffinity(0)
    one = {min(every)}
    ways: dict[str, tuple[Callable[[], object], set[int]]] = {
        "bare": (lambda: ggml().quantize(rows, Type[kind], None), one),
        "ours": (lambda: quantize(source, target, file_type), one),
        "ours_all_cores": (lambda: quantize(source, target, file_type), every),
    }
    if llama_quantize:
        command = [llama_quantize, str(source), str(target), file_type, "1"]
        ways["llama_quantize"] = (lambda: subprocess.run(command, check=True, capture_output=True), one)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (action, cores) in ways.items():
            seconds[name].append(timed(action, cores))
    found = {name: rows.size / statistics.median(taken) for name, taken in seconds.items()}
    return found | {"cores": len(every), "ours_to_bare": found["ours"] / found["bare"]}


def line(kind: str, figures: Figures) -> str:
    """A row of the table."""
    said = [f"{name.replace('_', ' ')} {value / 1e6:6.1f}M/s" for name, value in figures.items() if value > 1e4]
    return f"{kind:7} {', '.join(said)}; ours is {figures['ours_to_bare']:.0%} of bare"


def met(figures: Figures) -> bool:
    """Whether the claim holds for Q4_K."""
    return figures["ours"] >= 0.9 * min(TARGET, figures["bare"])


def main() -> None:
    """Write a matrix, measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure the quantisation of a GGUF.")
    parser.add_argument("--weights", type=int, default=2**26)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1M weights, one round, nothing written")
    parser.add_argument("--llama-quantize", help="the program to measure beside")
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/quantize-DATE.json)")
    given = parser.parse_args()
    weights, rounds = (2**20, 1) if given.quick else (given.weights, given.rounds)
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder:
        source = Path(folder) / "source.gguf"
        rows = write_matrix(source, weights)
        for kind in KINDS:
            results[kind] = measure(kind, source, rows, rounds, given.llama_quantize)
            print(line(kind, results[kind]))
    print(f"Q4_K a core: {'met' if met(results['Q4_K']) else 'MISSED'}, {TARGET / 1e6:.0f}M/s or the bare call's speed")
    if given.quick and not given.out:
        return
    where: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **dataclasses.asdict(hardware.describe()),
        "versions": {name: version(name) for name in PACKAGES},
        "weights": weights,
        "rounds": rounds,
    }
    out = given.out or ROOT / "benchmarks" / "results" / f"quantize-{where['date'][:10]}.json"
    rounded = {kind: {name: round(value, 3) for name, value in figures.items()} for kind, figures in results.items()}
    out.write_text(json.dumps({**where, "results": rounded}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
