"""What the GPU path may cost: numbers of today, which a change may lower and must not raise.

    PYTHONPATH=src:tests python -m gpu_path.walk OUT.json
    python tests/gpu_path/budgets.py OUT.json               # the tables of what was walked

The figures are of all cases in one process: what one of them leaves in a cache, or a buffer that it makes larger, is there for
the next. They hold of the fast suite's half, too, which is walked in the same order.

A figure that has fallen well below its budget fails too, so that the table says what is true: write the lower one.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = 8  # tokens that a graph writes before the host reads them


class StepBudget(NamedTuple):
    """An optimizer step over one pack of 2,048 tokens.

    Attributes:
        launches: of a layer.
        touched: bytes that a layer's launches read and write, in MB.
        kept: live bytes at the peak, in MB a layer: weights and what stays for the gradients.
        once: live bytes at the peak that do not grow with the layers, in MB.
        waits: of the host, before the last gradient is under way.
        downloads: copies to the host.
    """

    launches: float
    touched: float
    kept: float
    once: float
    waits: int = 0
    downloads: int = 0


class StageBudget(NamedTuple):
    """Something that a GPU does beside the steps, with the smaller model.

    Attributes:
        launches: of all of it; in decoding, of one more token.
        touched: MB.
        waits: of the host; in decoding, for one more token.
        pageable: copies to the device for which the host waits.
    """

    launches: float
    touched: float
    waits: float
    pageable: int


QUANTISE = 35  # launches for a weight of 4 million numbers

STEPS: dict[str, StepBudget] = {
    "llama-8b": StepBudget(44, 4368, 323, 2352, 0, 0),
    "llama-8b dropout": StepBudget(44, 4259, 323, 2352, 0, 0),
    "llama-8b layer": StepBudget(60, 5884, 146, 2699, 0, 0),
    "llama-8b dropout layer": StepBudget(60, 5775, 146, 2699, 0, 0),
    "llama-8b streamed": StepBudget(60, 5775, 34, 2924, 0, 0),
    "llama-8b from disk": StepBudget(60, 5775, 34, 2924, 0, 0),
    "llama-8b offload": StepBudget(60, 5884, 141, 2711, 0, 1),
    "llama-8b known": StepBudget(60, 5841, 135, 2751, 0, 9),
    "llama-8b long": StepBudget(294, 67322, 266, 4470, 0, 1),
    "llama-8b lean": StepBudget(60, 5884, 146, 1124, 0, 0),
    "llama-8b trained tables": StepBudget(44, 4369, 135, 19183, 0, 0),  # 16 bytes a weight of both, and a gradient more
    "llama-8b attention": StepBudget(53, 4801, 281, 2394, 0, 0),
    "llama-8b mlp": StepBudget(50, 5400, 206, 2581, 0, 0),
    "llama-8b every second": StepBudget(52, 5126, 235, 2522, 0, 0),
    "llama-8b r1": StepBudget(44, 4318, 308, 2352, 0, 0),
    "llama-8b r4": StepBudget(44, 4327, 311, 2352, 0, 0),
    "llama-8b r8": StepBudget(44, 4230, 315, 2352, 0, 0),
    "llama-8b r64": StepBudget(44, 4555, 375, 2369, 0, 0),
    "llama-8b fp16": StepBudget(368, 14833, 700, 2457, 0, 0),
    "qwen3-8b": StepBudget(49, 3966, 313, 2901, 0, 0),
    "gemma3-12b": StepBudget(53, 4723, 398, 2485, 0, 0),
    "gemma4-12b": StepBudget(130.5, 6889, 538, 2667, 0, 0),
    "gemma4-e2b": StepBudget(141, 3043, 246, 618, 0, 0),
    "qwen3-moe": StepBudget(131, 5841, 215, 2246, 0, 0),
}

STAGES: dict[tuple[str, str], StageBudget] = {
    ("llama-8b", "load"): StageBudget(865, 41711, 0, 0),
    ("llama-8b", "health"): StageBudget(506, 14656, 10, 1),
    ("llama-8b", "score"): StageBudget(460, 9406, 1, 0),
    ("llama-8b", "decode"): StageBudget(165, 2369, 1, 0),
    ("llama-8b", "graph"): StageBudget(2, 2374, 0.125, 0),
    ("llama-8b lean", "load"): StageBudget(950, 56428, 1, 0),
    ("llama-8b lean", "health"): StageBudget(675, 23652, 10, 0),
    ("llama-8b lean", "score"): StageBudget(550, 14167, 1, 0),
    ("llama-8b lean", "decode"): StageBudget(195, 3947, 1, 0),
    ("llama-8b fp16", "load"): StageBudget(905, 43812, 7, 0),
    ("llama-8b fp16", "health"): StageBudget(1299, 20783, 10, 0),
    ("llama-8b fp16", "score"): StageBudget(1196, 14269, 1, 0),
    ("llama-8b fp16", "decode"): StageBudget(299, 4154, 1, 0),
    ("llama-8b fp16", "graph"): StageBudget(2, 4165, 0.125, 0),
    ("qwen3-8b", "load"): StageBudget(779, 38788, 0, 0),
    ("qwen3-8b", "health"): StageBudget(586, 15911, 10, 0),
    ("qwen3-8b", "score"): StageBudget(556, 10379, 1, 0),
    ("qwen3-8b", "decode"): StageBudget(197, 2732, 1, 0),
    ("qwen3-8b", "graph"): StageBudget(2, 2737, 0.125, 0),
    ("gemma3-12b", "load"): StageBudget(870, 42426, 0, 0),
    ("gemma3-12b", "health"): StageBudget(768, 23761, 12, 0),
    ("gemma3-12b", "score"): StageBudget(779, 15711, 1, 0),
    ("gemma3-12b", "decode"): StageBudget(270, 4322, 1, 0),
    ("gemma3-12b", "graph"): StageBudget(2, 4331, 0.125, 0),
    ("gemma4-12b", "load"): StageBudget(870, 43861, 0, 0),
    ("gemma4-12b", "health"): StageBudget(821, 24228, 12, 0),
    ("gemma4-12b", "score"): StageBudget(967, 16134, 1, 0),
    ("gemma4-12b", "decode"): StageBudget(274, 4325, 1, 0),
    ("gemma4-12b", "graph"): StageBudget(2, 4331, 0.125, 0),
    ("gemma4-e2b", "load"): StageBudget(986, 17380, 0, 0),
    ("gemma4-e2b", "health"): StageBudget(1621, 3900, 12, 0),
    ("gemma4-e2b", "score"): StageBudget(1822, 2974, 1, 0),
    ("gemma4-e2b", "decode"): StageBudget(507, 363, 1, 0),
    ("qwen3-moe", "load"): StageBudget(571, 19056, 0, 0),
    ("qwen3-moe", "health"): StageBudget(862, 10373, 10, 0),
    ("qwen3-moe", "score"): StageBudget(670, 6854, 1, 0),
    ("qwen3-moe", "decode"): StageBudget(237, 2006, 1, 0),
    ("qwen3-moe", "graph"): StageBudget(2, 2008, 0.125, 0),
}

# Tensors that stay on the host on purpose.
ON_THE_HOST = {
    "llama-8b lean": ["model.embed_tokens.rows.weight"],
    "gemma4-e2b": ["model.embed_tokens_per_layer.rows.weight"],
}


def step_figures(case: dict[str, Any]) -> StepBudget:
    """What was seen in place of the budget."""
    small, large = case["step"], case["deeper step"]
    layers = large["layers"] - small["layers"]
    launches, touched, kept = ((large[key] - small[key]) / layers for key in ("launches", "bytes", "peak"))
    once = small["peak"] - small["layers"] * kept
    waits = len(early_waits(small))
    return StepBudget(launches, touched / 1e6, kept / 1e6, once / 1e6, waits, len(small["downloads"]))


def stage_figures(case: dict[str, Any]) -> dict[str, StageBudget]:
    """The same of the stages that were walked; of decoding, the third token of a batch less its second, and one by a graph."""
    found = {name: _stage(case[name]) for name in ("load", "health", "score") if name in case}
    if "decode 3" in case:
        two, three = _stage(case["decode 2"]), _stage(case["decode 3"])
        launches, touched, waits = (b - a for a, b in zip(two[:3], three[:3], strict=True))
        found["decode"] = StageBudget(launches, touched, int(waits), three.pageable)
    if "graph" in case:
        (recorded,) = case["graph"]["graphs"]
        before, after = (launches for what, launches in case["graph"]["waits"][-2:] if what.startswith("tolist"))
        found["graph"] = StageBudget((after - before) / BLOCK, recorded["bytes"] / 1e6, 1 / BLOCK, len(pageable(case["graph"])))
    return found


def early_waits(step: dict[str, Any]) -> list[str]:
    """Waits of the host after which there was more to launch for this step's gradients."""
    last = max(number for what, number in step["waits"] if "train/step.py" in what)
    return [what for what, number in step["waits"] if number < last]


def pageable(figures: dict[str, Any]) -> list[str]:
    """Places of copies to the device that are not pinned or not asynchronous."""
    return [place for _, is_pinned, is_asynchronous, place in figures["uploads"] if not (is_pinned and is_asynchronous)]


def _stage(figures: dict[str, Any]) -> StageBudget:
    return StageBudget(figures["launches"], figures["bytes"] / 1e6, len(figures["waits"]), len(pageable(figures)))


def main() -> None:
    """Print the tables."""
    found = json.loads(Path(sys.argv[1]).read_text())
    print(f"QUANTISE = {found['quantise']['launches']}")
    for name, case in found["cases"].items():
        print(f'    "{name}": {_row(step_figures(case))},')
    for name, case in found["cases"].items():
        for stage, figures in stage_figures(case).items():
            if stage != "load" or "health" in case:
                print(f'    ("{name}", "{stage}"): {_row(figures)},')


def _row(figures: StepBudget | StageBudget) -> str:
    exact = [number < 1 or (number < 2000 and number == round(number, 1)) for number in figures]
    numbers = [f"{number:g}" if is_exact else f"{number:.0f}" for number, is_exact in zip(figures, exact, strict=True)]
    return f"{type(figures).__name__}({', '.join(numbers)})"


if __name__ == "__main__":
    main()
