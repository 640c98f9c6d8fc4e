"""One command for a CUDA machine: are the kernels right, what do they reach, what does a training step reach.

    python benchmarks/gpu.py                          # all parts, about ten minutes on a large card
    python benchmarks/gpu.py --only kernels,step-8B   # some
    python benchmarks/gpu.py --out FILE               # all figures, written after every part

Parts: ``kernels`` (every kernel as the step calls it against fp64 on the CPU, and its time against its floor:
``gpu_kernels.py``), ``step-1B``, ``step-8B``, ``step-27B`` (QLoRA on random weights, packed, documents up to 2,048 tokens:
``gpu_step.py``), ``load`` and ``decode`` (``gpu_serve.py``), and ``drift`` (what rounding the update apart costs in bf16).

**A bare machine.** ``kernels`` need torch, triton and numpy; the others also transformers, pydantic, jiter and pyarrow. Where
nothing can be installed from the net, bring wheels for that machine's Python
(``pip download -d WHEELS --only-binary :all: pydantic jiter pyarrow``), and ``--wheels WHEELS`` there: what is missing is
installed into a folder of this run's own.

Every part is a process of its own: one that fails is reported and the others still run. A setting that runs out of memory is
a figure, not a failure. A machine without CUDA is told so, with exit status 2; a part that failed or a kernel that is wrong
gives 1. A table goes to stdout, all figures to ``benchmarks/results/gpu-DATE.json`` (or ``--out``).

``--dry-run`` goes through all of it on a device that is not there, with a small model; figures say nothing, but whoever
carries this to a rented machine knows that it runs to its end.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_shapes import DRIFT_SHAPE, SHAPES, SMALL_SHAPE

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))  # it need not be installed
PARTS = ("kernels", "step-8B", "step-1B", "load", "decode", "step-27B", "drift")
PACKAGES = ("torch", "triton", "transformers", "numpy", "pydantic", "jiter", "pyarrow", "bitsandbytes")
NEEDED = ("transformers", "pydantic", "jiter", "pyarrow")  # by all parts but the kernels
NVIDIA = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
CHECKED_TOKENS = (1, 7, 1000)  # one token, and numbers that are multiples of no block
TIMED_TOKENS = 8192
# what a step is measured at: tokens of a pack, packs of a step, what is recomputed, rank, dropout
STEPS = {
    "1B": [(2048, 4, "none", 16, 0.0), (8192, 1, "none", 16, 0.0), (8192, 1, "layer", 16, 0.0)],
    "8B": [
        (2048, 4, "none", 16, 0.0),
        (2048, 4, "none", 16, 0.05),
        (2048, 4, "none", 8, 0.0),
        (2048, 4, "layer", 16, 0.0),
        (8192, 1, "layer", 16, 0.0),
    ],
    "27B": [(2048, 2, "layer", 16, 0.0)],
}
DECODED = [(1, False), (1, True), (16, False), (16, True)]  # rows of a batch, with an adapter
TARGET_SHARE = 0.6  # of the measured bf16 product
NO_CUDA = 2

Figures = dict[str, Any]


class Sizes:
    """How large everything is: as measured, or for a dry run."""

    def __init__(self, dry: bool):
        self.dry = dry
        self.shapes = dict.fromkeys(SHAPES, SMALL_SHAPE) if dry else SHAPES
        self.drift = SMALL_SHAPE if dry else DRIFT_SHAPE
        self.checked = (7,) if dry else CHECKED_TOKENS
        self.timed = 64 if dry else TIMED_TOKENS
        self.card = 64 if dry else 8192
        self.longest = 128 if dry else 1 << 62  # tokens of a pack


def run_kernels(sizes: Sizes) -> Figures:
    """Errors and times of all kernels at the shapes of 8B; one that raises is a result too."""
    import torch
    from gpu_kernels import cases, check, measure_card, measure_case

    shape = sizes.shapes["8B"]
    heads = (shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"])
    card = measure_card("cuda", sizes.card)
    found: Figures = {"card": {**card, "name": torch.cuda.get_device_name()}, "cases": {}}
    for name, case in cases(shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"], *heads).items():
        figures: Figures = {"tolerance": case.tolerance}
        try:
            figures["errors"] = {str(tokens): check(case, tokens, "cuda") for tokens in sizes.checked}
            figures["right"] = sizes.dry or max(figures["errors"].values()) <= case.tolerance
            figures |= measure_case(case, sizes.timed, "cuda", card)
        except Exception as error:  # noqa: BLE001  # Triton's compile errors share no class; the other kernels still run
            figures |= {"right": False, "failed": f"{type(error).__name__}: {error}"[:500]}
        found["cases"][name] = figures
        print(kernel_line(name, figures), flush=True)
    return found


def run_step(size: str, sizes: Sizes) -> Figures:
    """The training step at one size, in all its settings."""
    import torch
    from gpu_kernels import measure_card
    from gpu_step import measure_step

    card = measure_card("cuda", sizes.card)
    found: Figures = {"card": card, "settings": []}
    for tokens, packs, policy, rank, dropout in STEPS[size]:
        pack_tokens = min(tokens, sizes.longest)
        try:
            options = {"rank": rank, "dropout": dropout}
            figures = measure_step(sizes.shapes[size], "cuda", card, pack_tokens, packs, policy, **options)
        except torch.OutOfMemoryError as error:
            figures = {"pack_tokens": pack_tokens, "recompute": policy, "r": rank, "dropout": dropout}
            figures["out_of_memory"] = str(error)[:300]
        found["settings"].append(figures)
        print(step_line(size, figures), flush=True)
    return found


def run_load(sizes: Sizes) -> Figures:
    """Weights on their way to the card."""
    from gpu_serve import measure_load

    found = measure_load(sizes.shapes["8B"], "cuda", 1 << 12 if sizes.dry else 1 << 30)
    copied, pinned = (found[f"{kind}_bytes_per_second"] / 1e9 for kind in ("pageable", "pinned"))
    rate = found["weights_per_second"] / 1e9
    print(f"copy {copied:.1f} GB/s, pinned {pinned:.1f} GB/s; {rate:.2f} G weights/s; 8B in {found['foretold_seconds']:.1f} s")
    return found


def run_decode(sizes: Sizes) -> Figures:
    """Answers of 8B, with and without an adapter, step by step and with CUDA graphs, which have to answer the same."""
    from gpu_kernels import measure_card
    from gpu_serve import NEW, PROMPT, measure_decode

    card = measure_card("cuda", sizes.card)
    found: Figures = {"card": card, "settings": []}
    for rows, adapted in DECODED:
        expected: list[list[int]] = []
        for graphs in (False, True):
            tokens = {"prompt": 8, "new": 17 if graphs else 2} if sizes.dry else {"prompt": PROMPT, "new": NEW}
            figures, answers = measure_decode(sizes.shapes["8B"], "cuda", card, rows, adapted, graphs, **tokens)
            if graphs:
                figures["right"] = [ids[: len(of_row)] for ids, of_row in zip(answers, expected, strict=True)] == expected
            expected = answers
            found["settings"].append(figures)
            print(decode_line(figures), flush=True)
    return found


def run_drift(sizes: Sizes) -> Figures:
    """What rounding the update apart costs."""
    from gpu_step import measure_drift

    found = measure_drift(sizes.drift, "cuda", **({"steps": 2, "tokens": 64} if sizes.dry else {}))
    print(drift_lines(found), flush=True)
    return found


def kernel_line(name: str, figures: Figures) -> str:
    """A row of the kernels' table."""
    if "failed" in figures:
        return f"{name:<26}FAILED  {figures['failed']}"
    worst = max(figures["errors"].values())
    verdict = "right" if figures["right"] else "WRONG"
    times = (
        f"{figures['seconds'] * 1e6:10.1f} us  floor {figures['floor_seconds'] * 1e6:9.1f} us {figures['share_of_floor']:7.1%}"
    )
    return f"{name:<26}{verdict}  error {worst:.1e} (at most {figures['tolerance']:.1e}){times}"


def step_line(size: str, figures: Figures) -> str:
    """A row of the steps' table."""
    setting = f"{size:<5}packs of {figures['pack_tokens']:>5}, recompute {figures['recompute']:<6}"
    setting += f" r {figures['r']:>2} dropout {figures['dropout']:<4}"
    if "out_of_memory" in figures:
        return f"{setting} out of memory: {figures['out_of_memory']}"
    share, useful = figures["share_of_product"], figures["useful_share_of_product"]
    held = "ok" if share >= TARGET_SHARE else "MISSED"
    memory = f"peak {figures['peak_bytes'] / 1e9:.2f} GB (weights {figures['weights_bytes'] / 1e9:.2f})"
    speed = f"{figures['tokens_per_second']:>9,.0f} tokens/s"
    return f"{setting}{speed}  {share:.0%} of bf16 product {held} (>= {TARGET_SHARE:.0%}), useful {useful:.0%}  {memory}"


def decode_line(figures: Figures) -> str:
    """A row of the answers' table."""
    way = "step by step" if not figures["graphs"] else "graphs" if figures["recorded"] else "graphs (given up)"
    wrong = "" if figures.get("right", True) else "  WRONG: other answers than step by step"
    speed = f"{figures['tokens_per_second']:>9,.0f} tokens/s  {figures['share_of_floor']:.0%} of the floor"
    return f"{figures['rows']:>3} rows, {'adapter' if figures['adapter'] else 'base   '}, {way:<17} {speed}{wrong}"


def drift_lines(found: Figures) -> str:
    """Each way's mean difference from fp32 and the share of the gain it loses."""
    lines = [f"fp32: loss {found['fp32']['losses'][0]:.4f} -> {found['fp32']['losses'][-1]:.4f}"]
    for arm in ("bf16 accurate", "bf16 rounded apart"):
        lines.append(f"{arm}: mean difference {found[arm]['mean_difference']:+.5f}, gain lost {found[arm]['gain_lost']:.1%}")
    return "\n".join(lines)


def run_part(part: str, dry: bool) -> Figures:
    """In a process of its own."""
    others = {"kernels": run_kernels, "load": run_load, "decode": run_decode, "drift": run_drift}
    if dry:
        print("(a dry run: nothing is computed, and no figure means anything)", flush=True)
    with no_device() if dry else contextlib.nullcontext():
        sizes = Sizes(dry)
        return others[part](sizes) if part in others else run_step(part.removeprefix("step-"), sizes)


def no_device() -> contextlib.AbstractContextManager[Any]:
    """The device of the tests that is not there."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fake_cuda import cuda

    return cuda()


def succeeded(results: dict[str, Figures]) -> bool:
    """Whether every part ran and every kernel is right."""
    for figures in results.values():
        settings = [*figures.get("cases", {}).values(), *figures.get("settings", [])]
        if "failed" in figures or any("failed" in s or not s.get("right", True) for s in settings):
            return False
    return True


def machine() -> Figures:
    """What a figure means nothing without: the card, its driver, versions; None for what is not there."""
    from datetime import UTC, datetime
    from platform import python_version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA)}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        cards = [dict(zip(NVIDIA, line.split(", "), strict=False)) for line in said.splitlines()]
    except (OSError, subprocess.SubprocessError):
        cards = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "cards": cards,
        "packages": {name: installed(name) for name in PACKAGES},
    }


def lacking(part: str) -> list[str]:
    """Packages that a part needs and that are not there."""
    return [] if part == "kernels" else [name for name in NEEDED if find_spec(name) is None]


def install(wheels: Path, folder: Path) -> None:
    """Put what is missing into ``folder``, from wheels alone, and on the path of this process and the parts."""
    missing = lacking("step-8B")
    if missing:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--find-links",
            str(wheels),
            "--target",
            str(folder),
        ]
        subprocess.run([*command, *missing], check=True)
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))


def benchmark(parts: list[str], target: Path, dry: bool = False) -> dict[str, Figures]:
    """Run the parts one after another; the file is written after each."""
    where = machine()
    results: dict[str, Figures] = {}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder:
        for part in parts:
            print(f"--- {part}", flush=True)
            out = Path(folder) / f"{part}.json"
            if missing := lacking(part):
                results[part] = {"failed": f"needs {', '.join(missing)}, see --wheels"}
            else:
                command = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--out", str(out)]
                done = subprocess.run([*command, "--dry-run"] if dry else command, check=False)
                results[part] = {"failed": f"exit status {done.returncode}"} if done.returncode else json.loads(out.read_text())
            if "failed" in results[part]:
                print(f"{part}: FAILED, {results[part]['failed']}", flush=True)
            target.write_text(json.dumps({**where, "dry_run": dry, "results": results}, indent=2) + "\n")
    return results


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Check and measure the kernels and the training step on a CUDA device.")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts")
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/gpu-DATE.json)")
    parser.add_argument(
        "--wheels", type=Path, help="folder of wheels to install what is missing from, into a folder of this run"
    )
    parser.add_argument("--dry-run", action="store_true", help="on a device that is not there, to see that it runs to its end")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    parts = given.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown: {', '.join(unknown)}; expected {', '.join(PARTS)}")
    if given.dry_run and not given.out:
        parser.error("a dry run needs --out: its figures say nothing and have no place among the results")
    if given.part:
        given.out.write_text(json.dumps(run_part(given.part, given.dry_run)))
        return
    import torch

    if not torch.cuda.is_available() and not given.dry_run:
        print(f"no CUDA device: torch {torch.__version__} sees none, and there is nothing here to measure", file=sys.stderr)
        raise SystemExit(NO_CUDA)
    target = given.out or ROOT / "benchmarks" / "results" / f"gpu-{machine()['date'][:10]}.json"
    with tempfile.TemporaryDirectory(prefix="tunesmith-packages-") as folder:
        if given.wheels:
            install(given.wheels, Path(folder))
        results = benchmark(parts, target, given.dry_run)
    print(f"written: {target}")
    raise SystemExit(0 if succeeded(results) else 1)


if __name__ == "__main__":
    main()
