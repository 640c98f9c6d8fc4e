"""Every kernel on the device: right against fp64 on the CPU, and its time against the least it could take.

A case makes its inputs as a training step has them (bf16, q as some columns of one product's output, logits in fp32) and
calls the public function. The same call on the same numbers in fp64 on the CPU, where
the plain PyTorch reference runs, is the truth. The error of an element is measured against its own size plus the
root mean square of the whole result, so that an element near zero in a large tensor asks for nothing impossible, and a
single wrong element cannot hide in a norm. Half a unit in the last place of bf16 is 2^-9; a result rounded once must stay
below 2^-8, one with two roundings on the way below 2^-7. Attention rounds probabilities and the small differences that are
their gradients: 2^-4, as any flash attention in bf16; a layer with an adapter rounds x A^T and dy B on the way: 2^-5.

The floor of a case is the larger of its bytes over the card's measured copy bandwidth and its FLOP over the card's measured
bf16 product. Bytes are those that must move: every input read once, every output written once. The second-level cache is
flushed before each sample.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_layers import layer_inputs, layer_results, layer_traffic, timed
from torch import Tensor

ONCE, TWICE, LAYER, COARSE = 2.0**-8, 2.0**-7, 2.0**-5, 2.0**-4
Inputs = dict[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A call of a kernel.

    Attributes:
        make: inputs on the CPU for so many tokens: tensors, in bf16 where they are not indices, and quantised weights.
        call: the results, of inputs on any device and in any dtype.
        traffic: bytes that must move, and FLOP.
        tolerance: largest error.
        timed: what is timed instead of ``call``, made of the inputs once.
    """

    make: Callable[[int], Inputs]
    call: Callable[..., tuple[Tensor, ...]]
    traffic: Callable[[Inputs], tuple[float, float]]
    tolerance: float
    timed: Callable[[Inputs], Callable[[], Any]] | None = None


def _normal(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).bfloat16()


def _nbytes(*tensors: Any) -> float:
    return float(sum(t.nbytes for t in tensors if isinstance(t, Tensor)))


def _attention_inputs(tokens: int, heads: int, kv_heads: int, width: int) -> Inputs:
    shapes = {"q": heads, "k": kv_heads, "v": kv_heads, "do": heads}
    return {name: _normal(tokens, h, width) for name, h in shapes.items()}


def _attention(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients; the pack is one document in three and two that share its first third."""
    from tunesmith.kernels.attention import ScoreParams, Span, attention, attention_backward, attention_forward

    end, third = len(q), max(1, len(q) // 3)
    spans = [Span(0, third, 0, 0), Span(third, 2 * third, 0, third), Span(2 * third, end, 0, third)]
    spans = [span for span in spans if span.end > span.start] if end > 2 else [Span(0, end, 0, 0)]
    scoring = ScoreParams(q.shape[-1] ** -0.5)
    if not q.is_cuda:
        out, saved = attention_forward(q, k, v, spans, scoring)
        return out, *attention_backward(do, saved, spans, scoring)
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    out = attention(q, k, v, spans, scoring)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), do)


def _attention_traffic(i: Inputs) -> tuple[float, float]:
    tokens, heads, width = i["q"].shape
    third = tokens // 3
    pairs = 3 * third * third / 2 + 2 * third * third
    return 2 * _nbytes(*i.values()), 14 * pairs * heads * width  # flash: two products forward, five backward


def cases(hidden: int, features: int, vocabulary: int, heads: int, kv_heads: int, width: int) -> dict[str, Case]:
    """All kernels at the shapes of a model."""
    from tunesmith.kernels.cross_entropy import cross_entropy_rows_
    from tunesmith.kernels.glu import glu_backward, glu_forward
    from tunesmith.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_forward
    from tunesmith.kernels.rope import rope_

    def norm_inputs(tokens: int) -> Inputs:
        return {"x": _normal(tokens, hidden), "weight": _normal(hidden), "dy": _normal(tokens, hidden)}

    def norm_backward(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        return (rms_norm_backward(dy, x, weight, rms_norm_forward(x, weight, 1e-5)[1]),)

    def rope_inputs(tokens: int) -> Inputs:
        angle = torch.rand(tokens, width // 2).repeat(1, 2) * 6.28
        return {"qkv": qkv_of(tokens), "cos": angle.cos().bfloat16(), "sin": angle.sin().bfloat16()}

    def qkv_of(tokens: int) -> Tensor:
        return _normal(tokens, heads + 2 * kv_heads, width)

    def query_bytes(i: Inputs) -> float:
        return 2.0 * len(i["qkv"]) * heads * width * 2

    def glu_inputs(tokens: int) -> Inputs:
        return {name: _normal(tokens, features) for name in ("dh", "gate", "up")}

    def entropy_inputs(tokens: int) -> Inputs:
        rows = min(tokens, 256)
        return {"logits": _normal(rows, vocabulary, scale=3.0).float(), "target": torch.randint(vocabulary, (rows,))}

    return {
        "rms_norm_forward": Case(
            norm_inputs,
            lambda x, weight, dy: rms_norm_forward(x, weight, 1e-5)[:1],
            lambda i: (2 * i["x"].nbytes, 0),
            TWICE,  # the weight's product is a second rounding where the stock model rounds first
        ),
        "rms_norm_backward": Case(norm_inputs, norm_backward, lambda i: (4 * i["x"].nbytes, 0), TWICE),
        "rope": Case(
            rope_inputs,
            lambda qkv, cos, sin: (rope_(qkv[:, :heads], cos, sin),),
            lambda i: (query_bytes(i) + _nbytes(i["cos"], i["sin"]), 0),
            ONCE,
        ),
        "qk_norm": Case(
            lambda tokens: {"qkv": qkv_of(tokens), "weight": _normal(width)},
            lambda qkv, weight: (rms_norm(qkv[:, :heads], weight, 1e-5),),
            lambda i: (query_bytes(i), 0),
            TWICE,
        ),
        "glu_forward": Case(
            glu_inputs, lambda dh, gate, up: (glu_forward(gate, up, "silu"),), lambda i: (3 * i["up"].nbytes, 0), TWICE
        ),
        "glu_backward": Case(
            glu_inputs, lambda dh, gate, up: glu_backward(dh, gate, up, "silu"), lambda i: (6 * i["up"].nbytes, 0), TWICE
        ),
        "cross_entropy": Case(
            entropy_inputs,
            lambda logits, target: (cross_entropy_rows_(logits, target)[0], logits),
            lambda i: (2 * i["logits"].nbytes, 0),
            TWICE,
        ),
        **{
            f"attention {width * wider}": Case(
                partial(
                    _attention_inputs, heads=max(2, heads // wider), kv_heads=max(1, kv_heads // wider), width=width * wider
                ),
                _attention,
                _attention_traffic,
                COARSE,
            )
            for wider in (1, 2, 4)
        },
        **_nf4_cases(hidden, features),
        **{f"dequantize_blocks {kind}": _blocks_case(kind, hidden, features) for kind in ("Q4_0", "Q4_K", "Q6_K")},
        **_layer_cases(hidden, features),
    }


def _layer_cases(hidden: int, features: int) -> dict[str, Case]:
    """The layer of a step at ranks whose rows begin at multiples of 16 bytes by themselves, and at others."""
    return {
        f"layer r {rank}" + (f" dropout {dropout}" if dropout else ""): Case(
            partial(layer_inputs, inputs=hidden, outputs=features, rank=rank),
            layer_results,
            layer_traffic,
            LAYER,
            timed(dropout),
        )
        for rank, dropout in ((4, 0.0), (8, 0.0), (16, 0.0), (16, 0.05), (64, 0.0))
    }


def _blocks_case(kind: str, hidden: int, features: int) -> Case:
    """Blocks of random codes on a grid of one scale: what they mean is known without a quantiser."""
    from tunesmith.kernels.blocks import TYPES, Blocks, dequantize_blocks

    hidden += -hidden % 256  # whole blocks

    def blocks(_: int) -> Inputs:
        of, count = TYPES[kind], features * hidden // TYPES[kind].weights
        scale = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
        like = torch.full((count, of.nbytes), 17, dtype=torch.uint8)
        at = of.nbytes - 2 if kind == "Q6_K" else 0
        like[:, at : at + 2] = scale
        if kind == "Q4_K":
            like[:, 2:4] = scale
        codes = torch.randint(of.low, of.high + 1, (count, of.weights), dtype=torch.int8)
        return {"q": Blocks(of.pack(codes, like).view(features, -1), kind, (features, hidden)), "like": _normal(1)}

    def dequantized(q: Blocks, like: Tensor) -> tuple[Tensor, ...]:
        return (dequantize_blocks(q, torch.float32 if like.dtype == torch.float64 else like.dtype),)

    return Case(blocks, dequantized, lambda i: (i["q"].nbytes + 2 * i["q"].numel(), 0), ONCE)


def _nf4_cases(hidden: int, features: int) -> dict[str, Case]:
    """On codes that were made on the CPU; the truth is their dense weight in fp64."""
    from tunesmith.kernels.nf4 import NF4, dequantize_nf4, nf4_matmul, quantize_nf4

    def weight() -> Tensor:
        return _normal(features, hidden, scale=0.02)

    def quantized(weight: Tensor) -> tuple[Tensor, ...]:
        codes = quantize_nf4(weight.float() if weight.dtype == torch.float64 else weight)
        return (dequantize_nf4(codes, torch.float32),)

    def dequantized(q: NF4, like: Tensor) -> tuple[Tensor, ...]:
        return (dequantize_nf4(q, torch.float32 if like.dtype == torch.float64 else like.dtype),)

    def product(q: NF4, x: Tensor) -> tuple[Tensor, ...]:
        if x.dtype == torch.float64:
            return (x @ dequantize_nf4(q, torch.bfloat16).double().T,)
        return (nf4_matmul(x, q),)

    return {
        "quantize_nf4": Case(lambda _: {"weight": weight()}, quantized, lambda i: (1.2578 * i["weight"].nbytes, 0), ONCE),
        "dequantize_nf4": Case(
            lambda _: {"q": quantize_nf4(weight()), "like": _normal(1)},
            dequantized,
            lambda i: (i["q"].nbytes + 2 * i["q"].numel(), 0),
            ONCE,
        ),
        **{
            f"nf4_matmul {rows}": Case(
                lambda tokens, rows=rows: {"q": quantize_nf4(weight()), "x": _normal(min(tokens, rows), hidden)},
                product,
                lambda i: (i["q"].nbytes + i["x"].nbytes, 0),
                ONCE,
            )
            for rows in (1, 8, 32)
        },
    }


def error(got: Tensor, true: Tensor, other: float) -> float:
    """Largest difference of an element over its own size and the root mean square of all; infinite for a NaN.

    Args:
        other: the root mean square to take where the truth is zero all over (a softmax over one key has no gradient).
    """
    got, true = got.double().cpu(), true.double()
    size = float(true.square().mean().sqrt())
    worst = float(((got - true).abs() / (true.abs() + (size if size > 1e-9 * other else other))).max())
    return worst if worst == worst else float("inf")


def check(case: Case, tokens: int, device: str) -> float:
    """The largest error of a case."""
    torch.manual_seed(tokens)
    inputs = case.make(tokens)
    exact, given = {}, {}
    for name, value in inputs.items():
        floating = isinstance(value, Tensor) and value.is_floating_point()
        exact[name] = value.double() if floating else value
        given[name] = value.to(device, copy=True) if isinstance(value, Tensor) else value.to(device)
    true = case.call(**exact)
    got = case.call(**given)
    largest = max(float(t.double().square().mean().sqrt()) for t in true)
    return max(error(g, t, largest) for g, t in zip(got, true, strict=True))


def seconds(call: Callable[[], Any], device: str, samples: int = 15) -> float:
    """Median time of a call, the cache flushed before each."""
    flushed = torch.empty(2**28 if device == "cuda" else 2**10, dtype=torch.uint8, device=device)
    taken = []
    for number in range(samples + 3):
        flushed.zero_()
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            duration = start.elapsed_time(end) / 1e3
        else:
            before = time.perf_counter()
            call()
            duration = time.perf_counter() - before
        if number >= 3:
            taken.append(duration)
    return statistics.median(taken)


def measure_card(device: str, size: int = 8192) -> dict[str, float]:
    """Copy bandwidth (bytes read and written a second) and the bf16 product's FLOP a second, the best of several shapes."""
    source = torch.empty(size * size * 8, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds(lambda: target.copy_(source), device)
    rates = []
    for m in (size // 4, size // 2, size):
        a, b = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in ((m, size), (size, size)))
        rates.append(2.0 * m * size * size / seconds(lambda a=a, b=b: a @ b, device))
    return {"bytes_per_second": bandwidth, "flop_per_second": max(rates)}


def measure_case(case: Case, tokens: int, device: str, card: dict[str, float]) -> Figures:
    """Time of a case and its share of the floor; the inputs are used again and again, in place or not."""
    torch.manual_seed(0)
    inputs = {name: t.to(device) for name, t in case.make(tokens).items()}
    moved, flops = case.traffic(inputs)
    floor = max(moved / card["bytes_per_second"], flops / card["flop_per_second"])
    taken = seconds(case.timed(inputs) if case.timed else lambda: case.call(**inputs), device)
    return {"seconds": taken, "floor_seconds": floor, "share_of_floor": floor / taken}
