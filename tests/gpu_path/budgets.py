"""What the GPU path may cost: numbers of today, which a change may lower and must not raise.

    PYTHONPATH=src:tests python -m gpu_path.walk OUT.json
    python tests/gpu_path/budgets.py OUT.json               # the tables of what was walked

The figures are of all cases in one process: what one of them leaves in a cache, or a buffer that it makes larger, is there for
the next.

A figure that has fallen well below its budget fails too, so that the table says what is true: write the lower one.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


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
        waits: of the host.
        pageable: copies to the device for which the host waits.
    """

    launches: float
    touched: float
    waits: int
    pageable: int


QUANTISE = 568  # launches for a weight of 4 million numbers

STEPS: dict[str, StepBudget] = {
    "llama-8b": StepBudget(150, 5638, 343, 2294, 0, 0),
    "llama-8b dropout": StepBudget(190, 8364, 343, 2323, 0, 0),
    "llama-8b layer": StepBudget(201, 8139, 145, 2601, 0, 0),
    "llama-8b dropout layer": StepBudget(257, 11955, 145, 2719, 0, 0),
    "llama-8b attention": StepBudget(179, 6335, 279, 2358, 0, 0),
    "llama-8b mlp": StepBudget(171, 7391, 225, 2441, 0, 0),
    "llama-8b every second": StepBudget(175.5, 6888, 244, 2404, 0, 0),
    "llama-8b r1": StepBudget(150, 5562, 328, 2294, 0, 0),
    "llama-8b r4": StepBudget(150, 5577, 331, 2294, 0, 0),
    "llama-8b r8": StepBudget(190, 8323, 335, 2320, 0, 0),
    "llama-8b r64": StepBudget(150, 5881, 391, 2293, 0, 0),
    "llama-8b fp16": StepBudget(855, 19626, 583, 2511, 0, 0),
    "qwen3-8b": StepBudget(198, 7910, 312, 2849, 0, 0),
    "gemma3-12b": StepBudget(202, 9108, 397, 2486, 0, 0),
    "gemma4-12b": StepBudget(485, 10535, 426, 2668, 0, 0),
    "gemma4-e2b": StepBudget(484, 4778, 190, 595, 0, 1),
    "qwen3-moe": StepBudget(1095, 4469, 214, 1719, 8, 0),
}

STAGES: dict[tuple[str, str], StageBudget] = {
    ("llama-8b", "load"): StageBudget(574, 35605, 28, 23),
    ("llama-8b", "health"): StageBudget(751, 18241, 10, 20),
    ("llama-8b", "score"): StageBudget(1219, 19745, 7, 6),
    ("llama-8b", "decode"): StageBudget(232, 4994, 1, 6),
    ("llama-8b fp16", "load"): StageBudget(614, 37706, 35, 23),
    ("llama-8b fp16", "health"): StageBudget(1415, 20869, 10, 16),
    ("llama-8b fp16", "score"): StageBudget(1653, 17532, 7, 6),
    ("llama-8b fp16", "decode"): StageBudget(325, 4158, 1, 6),
    ("qwen3-8b", "load"): StageBudget(574, 31497, 28, 27),
    ("qwen3-8b", "health"): StageBudget(839, 19105, 10, 16),
    ("qwen3-8b", "score"): StageBudget(1329, 19886, 7, 6),
    ("qwen3-8b", "decode"): StageBudget(264, 5055, 1, 6),
    ("gemma3-12b", "load"): StageBudget(574, 36589, 28, 33),
    ("gemma3-12b", "health"): StageBudget(1021, 27476, 12, 16),
    ("gemma3-12b", "score"): StageBudget(1643, 27344, 9, 6),
    ("gemma3-12b", "decode"): StageBudget(337, 7020, 1, 6),
    ("gemma4-12b", "load"): StageBudget(533, 38033, 26, 34),
    ("gemma4-12b", "health"): StageBudget(1061, 28039, 12, 15),
    ("gemma4-12b", "score"): StageBudget(1615, 27895, 9, 6),
    ("gemma4-12b", "decode"): StageBudget(336, 7129, 1, 6),
    ("gemma4-e2b", "load"): StageBudget(984, 17146, 48, 72),
    ("gemma4-e2b", "health"): StageBudget(2046, 5627, 12, 26),
    ("gemma4-e2b", "score"): StageBudget(2979, 7435, 9, 6),
    ("gemma4-e2b", "decode"): StageBudget(624, 1632, 1, 6),
    ("qwen3-moe", "load"): StageBudget(492, 15408, 24, 27),
    ("qwen3-moe", "health"): StageBudget(4045, 11199, 30, 14),
    ("qwen3-moe", "score"): StageBudget(3649, 10264, 23, 6),
    ("qwen3-moe", "decode"): StageBudget(844, 2531, 5, 6),
}

# Tensors that stay on the host on purpose.
ON_THE_HOST = {"gemma4-e2b": ["model.embed_tokens_per_layer.rows.weight"]}


def step_figures(case: dict[str, Any]) -> StepBudget:
    """What was seen in place of the budget."""
    small, large = case["step"], case["deeper step"]
    layers = large["layers"] - small["layers"]
    launches, touched, kept = ((large[key] - small[key]) / layers for key in ("launches", "bytes", "peak"))
    once = small["peak"] - small["layers"] * kept
    waits = len(early_waits(small))
    return StepBudget(launches, touched / 1e6, kept / 1e6, once / 1e6, waits, len(small["downloads"]))


def stage_figures(case: dict[str, Any]) -> dict[str, StageBudget]:
    """The same of the stages that were walked; of decoding, the third token of a batch less its second."""
    found = {name: _stage(case[name]) for name in ("load", "health", "score") if name in case}
    if "decode 3" in case:
        two, three = _stage(case["decode 2"]), _stage(case["decode 3"])
        launches, touched, waits = (b - a for a, b in zip(two[:3], three[:3], strict=True))
        found["decode"] = StageBudget(launches, touched, int(waits), three.pageable)
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
    numbers = [f"{number:g}" if number < 2000 and number == round(number, 1) else f"{number:.0f}" for number in figures]
    return f"{type(figures).__name__}({', '.join(numbers)})"


if __name__ == "__main__":
    main()
