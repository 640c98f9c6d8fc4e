"""In which precision a run computes, chosen by a short timed probe where the recipe leaves it open.

Half the bytes are not always half the time: a CPU without bf16 instructions multiplies bf16 at half the speed of fp32
(docs/LOG.md), one with them at twice. A table of processors would be wrong for the next one, so both are timed, once, on
products of the model's own shape, for about a second. The result is kept in the cache, so that a run which is resumed or
evaluated later computes as it trained.

A GPU below compute capability 8.0 has no bf16 products: it gets fp16 with rows scaled and fp32 between the products
(``kernels/fp16_scaled_mm.py``). On any other machine fp16 has to be asked for.

``base`` is what the frozen weights are stored in, ``compute`` the dtype of the products; they differ for NF4 alone.

Shape suffixes: T tokens, I in_features, O out_features.
"""

import json
import logging
import time
from pathlib import Path
from typing import Literal

import torch

from tunesmith import hardware
from tunesmith.errors import ModelError
from tunesmith.memory.shape import is_size
from tunesmith.rundir import fingerprint, read_json, write_json

logger = logging.getLogger(__name__)

Dtype = Literal["fp32", "bf16", "fp16"]
TOKENS, ROUNDS = 1024, 4
WIDEST = 2**14  # that is tried, so that no file says how much memory a probe takes
BF16_CAPABILITY = (8, 0)  # of the first GPU with bf16 products, A100


def precision(base: str, compute: str, directory: Path) -> tuple[str, Dtype]:
    """Storage of the base weights (``fp32``, ``bf16``, ``fp16`` or ``nf4``) and dtype of the products.

    Args:
        base: ``recipe.base``.
        compute: ``recipe.train.compute``.
        directory: Hugging Face model directory.

    Raises:
        ModelError: its ``config.json`` has widths that no model has.
    """
    if base == "fp32" or base == "bf16":
        return base, base
    chosen: Dtype = compute if compute == "fp32" or compute == "bf16" or compute == "fp16" else _faster(directory)
    return (chosen if base == "auto" else base), chosen


def _faster(directory: Path) -> Dtype:
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability >= BF16_CAPABILITY:
            return "bf16"
        name = f"{torch.cuda.get_device_name()} (compute capability {capability[0]}.{capability[1]})"
        logger.info(f"precision: {name} has no bf16 products; computing in fp16 (train.compute fixes it)")
        return "fp16"
    shape = _shape(directory / "config.json")
    key = fingerprint([hardware.describe().cpu, torch.get_num_threads(), torch.__version__, shape])
    known = hardware.cache_dir() / "probes" / f"{key[:16]}.json"
    if known.exists():
        return read_json(known)["faster"]
    rates = probe(*shape)
    faster: Dtype = "bf16" if rates["bf16"] >= rates["fp32"] else "fp32"
    logger.info(
        f"precision: products of this model's shape run at {_speeds(rates)} here; computing in {faster} (base: fixes it)"
    )
    known.parent.mkdir(parents=True, exist_ok=True)
    write_json(known, {"faster": faster, "gflops": rates, "shape": shape})
    return faster


def _shape(path: Path) -> tuple[int, int]:
    """Width of a model, and of what its layers widen to."""
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    widths: list[int] = []
    for name in ("hidden_size", "intermediate_size"):
        width = text.get(name) or 4 * sum(widths)
        if not is_size(width) or width == 0:
            raise ModelError(
                f"{path}: {name} is {width!r:.40}, expected a number of a model's size", "get its config.json again"
            )
        widths.append(width)
    return widths[0], widths[1]


def probe(inputs: int, outputs: int) -> dict[str, float]:
    """GFLOP/s of ``x W^T`` and ``dy W`` for 1,024 tokens by dtype, the best of a few rounds taken in turn.

    Args:
        inputs, outputs: of the layer, at least 1; wider ones are tried at ``WIDEST``.
    """
    inputs, outputs = min(WIDEST, inputs), min(WIDEST, outputs)
    hardware.keep_fewer_kernels()
    best = {"fp32": float("inf"), "bf16": float("inf")}
    operands = {
        name: [torch.randn(*shape, dtype=dtype) for shape in ((TOKENS, inputs), (outputs, inputs), (TOKENS, outputs))]
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    for turn in range(ROUNDS + 1):
        for name, (x_TI, weight_OI, dy_TO) in operands.items():
            started = time.perf_counter()
            torch.mm(x_TI, weight_OI.T)
            torch.mm(dy_TO, weight_OI)
            if turn:  # the first builds the kernels
                best[name] = min(best[name], time.perf_counter() - started)
    return {name: round(4e-9 * TOKENS * inputs * outputs / seconds, 1) for name, seconds in best.items()}


def _speeds(rates: dict[str, float]) -> str:
    return ", ".join(f"{rate:,.0f} GFLOP/s in {name}" for name, rate in rates.items())
