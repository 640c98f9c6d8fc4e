"""A linear layer as a training step computes it: a frozen base in NF4 with an adapter, forward and backward.

The whole layer is measured and not the kernels that it happens to be made of: how the products are cut is ours to change,
and the strides, ranks and dtypes that the kernels meet are the step's own. The rank matters beyond its share of the
arithmetic, because it decides where rows begin: a rank of 8 halved the speed of a kernel that is fast at 16.

Truth is the formula in fp64 on the CPU, with the base and both factors rounded to bf16 first, as every way of computing does.
Dropout draws other numbers on a GPU, so layers are checked without it and timed with it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]

SCALE = 2.0


def layer_inputs(tokens: int, inputs: int, outputs: int, rank: int) -> Inputs:
    """Input and gradient of the output in bf16, the base in NF4, the factors in fp32 as they are trained."""
    from tunesmith.kernels.nf4 import quantize_nf4

    return {
        "x": torch.randn(tokens, inputs).bfloat16(),
        "dy": torch.randn(tokens, outputs).bfloat16(),
        "q": quantize_nf4((torch.randn(outputs, inputs) * 0.02).bfloat16()),
        "A": torch.randn(rank, inputs) * 0.02,
        "B": torch.randn(outputs, rank) * 0.02,
    }


def layer_results(x: Tensor, dy: Tensor, q: Any, A: Tensor, B: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of input and factors; in fp64 the formula itself."""
    from tunesmith.kernels.nf4 import dequantize_nf4

    if x.dtype != torch.float64:
        return _step(x, dy, q, A, B, 0.0)()
    weight = dequantize_nf4(q, torch.bfloat16).double()
    A, B = (factor.bfloat16().double() for factor in (A, B))
    xA, dyB = x @ A.T, dy @ B * SCALE
    return x @ weight.T + SCALE * (xA @ B.T), dy @ weight + dyB @ A, dyB.T @ x, SCALE * dy.T @ xA


def timed(dropout: float) -> Callable[[Inputs], Callable[[], Any]]:
    """A function of inputs that makes the layer once and returns its step."""
    return lambda inputs: _step(**inputs, dropout=dropout)


def layer_traffic(i: Inputs) -> tuple[float, float]:
    """Bytes of inputs and outputs, the packed weight twice; FLOP of two products with the base and of the thin ones."""
    tokens, width = i["x"].shape
    outputs, rank = i["B"].shape
    moved = 2 * i["x"].nbytes + 2 * i["dy"].nbytes + 2 * i["q"].nbytes
    return float(moved), 2.0 * tokens * (2 * width * outputs + 3 * rank * (width + outputs))


def _step(x: Tensor, dy: Tensor, q: Any, A: Tensor, B: Tensor, dropout: float) -> Callable[[], tuple[Tensor, ...]]:
    from tunesmith.layers.context import StepContext, at_step
    from tunesmith.layers.lora import LoRALinear
    from tunesmith.layers.nf4 import NF4Weight
    from tunesmith.layers.quantized import QuantizedLinear

    layer = LoRALinear(QuantizedLinear(NF4Weight(q, torch.bfloat16)), A.shape[0], SCALE, dropout)
    layer.lora_A.data, layer.lora_B.data = A, B
    x = x.detach().requires_grad_()

    def step() -> tuple[Tensor, ...]:
        with at_step(layer, StepContext(seed=0, step=0)) as enter:
            enter(0)
            y = layer(x)
            return y.detach(), *torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), dy)

    return step
