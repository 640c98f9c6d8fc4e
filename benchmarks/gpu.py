"""One command for a CUDA machine: are the kernels right, what do they reach, what does a training step reach.

    python benchmarks/gpu.py                          # all parts, about ten minutes on a large card
    python benchmarks/gpu.py --only kernels,step-8B   # some

Parts: ``kernels`` (every kernel in bf16 against fp64 on the CPU, and its time against its floor: ``gpu_kernels.py``),
``step-1B``, ``step-8B``, ``step-27B`` (QLoRA on random weights, packed, documents up to 2,048 tokens: ``gpu_step.py``), and
``drift`` (what rounding the update apart costs in bf16).

Every part is a process of its own: one that fails, or runs out of memory, is reported and the others still run; the file
is written after each. A machine without CUDA is told so, with exit status 2; a part that failed or a kernel that is wrong
gives 1. A table goes to stdout, all figures to ``benchmarks/results/gpu-DATE.json`` (or ``--out``).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data import machine

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("kernels", "step-1B", "step-8B", "step-27B", "drift")
CHECKED_TOKENS = (1, 7, 1000)  # one token, and numbers that are multiples of no block
TIMED_TOKENS = 8192
# what a step is measured at: tokens of a pack, packs of a step, what is recomputed
STEPS = {
    "1B": [(2048, 4, "none"), (8192, 1, "none"), (8192, 1, "layer")],
    "8B": [(2048, 4, "none"), (2048, 4, "layer"), (8192, 1, "layer")],
    "27B": [(2048, 2, "layer")],
}
TARGET_SHARE = 0.6  # of the measured bf16 product
NO_CUDA = 2

Figures = dict[str, Any]


def run_kernels() -> Figures:
    """Errors and times of all kernels at the shapes of 8B; one that raises is a result too."""
    import torch
    from gpu_kernels import cases, check, measure_card, measure_case
    from gpu_step import SHAPES

    shape = SHAPES["8B"]
    heads = (shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"])
    card = measure_card("cuda")
    found: Figures = {"card": {**card, "name": torch.cuda.get_device_name()}, "cases": {}}
    for name, case in cases(shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"], *heads).items():
        figures: Figures = {"tolerance": case.tolerance}
        try:
            figures["errors"] = {str(tokens): check(case, tokens, "cuda") for tokens in CHECKED_TOKENS}
            figures["right"] = max(figures["errors"].values()) <= case.tolerance
            figures |= measure_case(case, TIMED_TOKENS, "cuda", card)
        except Exception as error:  # noqa: BLE001  # Triton's compile errors share no class; the other kernels still run
            figures |= {"right": False, "failed": f"{type(error).__name__}: {error}"[:500]}
        found["cases"][name] = figures
        print(kernel_line(name, figures), flush=True)
    return found


def run_step(size: str) -> Figures:
    """The training step at one size, in all its settings."""
    import torch
    from gpu_kernels import measure_card
    from gpu_step import SHAPES, measure_step

    card = measure_card("cuda")
    found: Figures = {"card": card, "settings": []}
    for pack_tokens, packs, policy in STEPS[size]:
        try:
            figures = measure_step(SHAPES[size], "cuda", card, pack_tokens, packs, policy)
        except torch.OutOfMemoryError as error:
            figures = {"pack_tokens": pack_tokens, "recompute": policy, "failed": str(error)[:200]}
        found["settings"].append(figures)
        print(step_line(size, figures), flush=True)
    return found


def run_drift() -> Figures:
    """What rounding the update apart costs."""
    from gpu_step import DRIFT_SHAPE, measure_drift

    found = measure_drift(DRIFT_SHAPE, "cuda")
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
    if "failed" in figures:
        return f"{setting} FAILED  {figures['failed']}"
    share, useful = figures["share_of_product"], figures["useful_share_of_product"]
    held = "ok" if share >= TARGET_SHARE else "MISSED"
    memory = f"peak {figures['peak_bytes'] / 1e9:.2f} GB (weights {figures['weights_bytes'] / 1e9:.2f})"
    speed = f"{figures['tokens_per_second']:>9,.0f} tokens/s"
    return f"{setting}{speed}  {share:.0%} of bf16 product {held} (>= {TARGET_SHARE:.0%}), useful {useful:.0%}  {memory}"


def drift_lines(found: Figures) -> str:
    """Each way's mean difference from fp32 and the share of the gain it loses."""
    lines = [f"fp32: loss {found['fp32']['losses'][0]:.4f} -> {found['fp32']['losses'][-1]:.4f}"]
    for arm in ("bf16 accurate", "bf16 rounded apart"):
        lines.append(f"{arm}: mean difference {found[arm]['mean_difference']:+.5f}, gain lost {found[arm]['gain_lost']:.1%}")
    return "\n".join(lines)


def run_part(part: str) -> Figures:
    """In a process of its own."""
    if part == "kernels":
        return run_kernels()
    return run_drift() if part == "drift" else run_step(part.removeprefix("step-"))


def succeeded(results: dict[str, Figures]) -> bool:
    """Whether every part ran, every kernel is right and no setting ran out of memory."""
    for figures in results.values():
        settings = [*figures.get("cases", {}).values(), *figures.get("settings", [])]
        if "failed" in figures or any("failed" in s or not s.get("right", True) for s in settings):
            return False
    return True


def benchmark(parts: list[str], target: Path) -> dict[str, Figures]:
    """Run the parts one after another; the file is written after each."""
    where = machine()
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder:
        for part in parts:
            print(f"--- {part}", flush=True)
            out = Path(folder) / f"{part}.json"
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--part", part, "--out", str(out)], check=False
            )
            if done.returncode == 0:
                results[part] = json.loads(out.read_text())
            else:
                results[part] = {"failed": f"exit status {done.returncode}"}
                print(f"{part}: FAILED with exit status {done.returncode}", flush=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps({**where, "results": results}, indent=2) + "\n")
    return results


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Check and measure the kernels and the training step on a CUDA device.")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts")
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/gpu-DATE.json)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    parts = given.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown: {', '.join(unknown)}; expected {', '.join(PARTS)}")
    import torch

    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} sees none, and there is nothing here to measure", file=sys.stderr)
        raise SystemExit(NO_CUDA)
    if given.part:
        given.out.write_text(json.dumps(run_part(given.part)))
        return
    target = given.out or ROOT / "benchmarks" / "results" / f"gpu-{machine()['date'][:10]}.json"
    results = benchmark(parts, target)
    print(f"written: {target}")
    raise SystemExit(0 if succeeded(results) else 1)


if __name__ == "__main__":
    main()
