"""The least time a LoRA step can take on this machine: what must be multiplied, over the fastest measured product.

Per token 4 FLOP a base weight (forward, and the gradient of the input; frozen weights have none of their own), per LoRA
weight 6, causal attention within each document, and the head at supervised tokens alone. Nothing is counted twice: no
padding, no recomputation, no softmax, no norm. A share of the floor of 1 is therefore out of reach; what is far below it
leaves something to be had.

The rate under it is not a data sheet's: the products of the step, in their own shapes and in both directions, the best of
several samples each. In fp32 the better of MKL's product and oneDNN's with prepacked weights.

    python benchmarks/floor.py TOKENS THREADS < FACTS      # JSON, as tunesmith_step.py prepare answers
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]
SAMPLES = 9


def attention_pairs(length: int, window: int | None) -> int:
    """Query-key pairs of a document under a causal mask, with a sliding window or without."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def step_flops(facts: Facts, lengths: list[int], supervised: int) -> dict[str, float]:
    """FLOP of forward and backward over documents of these lengths, by part.

    Args:
        facts: ``linears`` (shapes (O, I)), ``windows`` (of each layer, or None), ``attention_width`` (heads times head
            dimension), ``vocabulary``, ``hidden``, ``r``.
        lengths: tokens of each document.
        supervised: supervised tokens, all documents together.
    """
    tokens = sum(lengths)
    pairs = sum(attention_pairs(length, window) for window in facts["windows"] for length in lengths)
    return {
        "base": 4.0 * tokens * sum(o * i for o, i in facts["linears"]),
        "lora": 6.0 * tokens * facts["r"] * sum(o + i for o, i in facts["linears"]),
        "attention": 12.0 * pairs * facts["attention_width"],  # 2 products forward, 4 backward, 2 FLOP a multiplication
        "head": 4.0 * supervised * facts["vocabulary"] * facts["hidden"],
    }


def measure_rates(linears: list[list[int]], tokens: int, threads: int, dtypes: tuple[str, ...]) -> dict[str, float]:
    """FLOP a second of the step's base products, per dtype (``fp32``, ``bf16``), on the CPU."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rates = {}
    for name in dtypes:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        flops = seconds = 0.0
        for (o, i), count in Counter(map(tuple, linears)).items():
            x_TI = torch.randn(tokens, i).to(dtype)
            dy_TO = torch.randn(tokens, o).to(dtype)
            weight_OI = torch.randn(o, i).to(dtype)
            forward = best([lambda x=x_TI, w=weight_OI: x @ w.T, *_prepacked(x_TI, weight_OI)])
            backward = best([lambda dy=dy_TO, w=weight_OI: dy @ w, *_prepacked(dy_TO, weight_OI.T.contiguous())])
            flops += count * 4.0 * tokens * o * i
            seconds += count * (forward + backward)
        rates[name] = flops / seconds
    return rates


def _prepacked(x_TI: Any, weight_OI: Any) -> list[Callable[[], Any]]:
    """The product with a weight that oneDNN laid out beforehand, where torch was built with it."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return []
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, x_TI.shape[0])
    return [lambda: torch.ops.mkldnn._linear_pointwise(x_TI, packed, None, "none", [], "")]


def best(ways: list[Callable[[], Any]]) -> float:
    """Seconds of the fastest sample of the fastest way, each warmed once."""
    samples = []
    for way in ways:
        way()
        for _ in range(SAMPLES):
            started = time.perf_counter()
            way()
            samples.append(time.perf_counter() - started)
    return min(samples)


def main() -> None:
    """Measure in a process of its own, and print the rates as one line of JSON."""
    tokens, threads, facts = int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin)
    print(json.dumps(measure_rates(facts["linears"], tokens, threads, ("fp32", "bf16"))))


if __name__ == "__main__":
    main()
