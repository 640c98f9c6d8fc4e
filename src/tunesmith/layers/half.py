"""Frozen linear layers that multiply in fp16 what flows in fp32: before an adapter is put on, or without one.

Each product scales its input row by row (``kernels/fp16_scaled_mm.py``) and comes out in fp32, so nothing overflows whatever
the size of the input. Such a layer saves nothing for its backward pass: the weight is frozen and the product linear. What an
adapter on top of it does is in ``layers/lora.py``, which model gets such layers in ``models/fp16_compute.py``.

Refused: an fp32 copy of the weight, which is what fp16 is to save.

Shape suffixes: T tokens (all leading dimensions flattened), I in_features, O out_features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.fp16_scaled_mm import scaled_mm, scaled_mm_back
from tunesmith.layers.context import InStep
from tunesmith.layers.quantized import QuantizedLinear


class HalfLinear(InStep, nn.Linear):
    """A frozen linear layer with its weight in fp16, for an input of any size in fp32.

    Args:
        base: its weight, fp16, is taken over as it is, ties included; its bias becomes fp32.
    """

    def __init__(self, base: nn.Linear):
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        assert base.weight.dtype == torch.float16, base.weight.dtype
        self.weight = base.weight.requires_grad_(False)
        self.register_parameter("bias", _wide_bias(base.bias))

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), fp32."""
        return _half_product(input, self)

    def half_OI(self) -> Tensor:
        """The weight, shape (O, I), fp16."""
        return self.weight


class HalfQuantizedLinear(InStep, QuantizedLinear):
    """A frozen linear layer in NF4 that is dense in fp16, for an input of any size in fp32.

    Args:
        base: its weight is taken over; its bias becomes fp32.
    """

    def __init__(self, base: QuantizedLinear):
        super().__init__(base.weight)
        self.register_parameter("bias", _wide_bias(base.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), fp32."""
        return _half_product(x, self)

    def half_OI(self) -> Tensor:
        """The dense weight, shape (O, I), fp16, valid until the next call on any layer."""
        return self.weight.dense(torch.float16)


def _wide_bias(bias: object) -> nn.Parameter | None:
    return nn.Parameter(bias.detach().float(), requires_grad=False) if isinstance(bias, Tensor) else None


def _half_product(x: Tensor, layer: HalfLinear | HalfQuantizedLinear) -> Tensor:
    y_TO = _HalfProduct.apply(x.reshape(-1, layer.in_features).float(), layer)
    assert isinstance(y_TO, Tensor)
    if isinstance(layer.bias, Tensor):
        y_TO.add_(layer.bias)
    return y_TO.view(*x.shape[:-1], layer.out_features)


class _HalfProduct(torch.autograd.Function):
    """``x W^T`` with a frozen W; saves nothing."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, layer: HalfLinear | HalfQuantizedLinear) -> Tensor:
        ctx.layer = layer
        return scaled_mm(x_TI, layer.half_OI(), overflow=layer.overflow)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return scaled_mm_back(grads[0], ctx.layer.half_OI(), overflow=ctx.layer.overflow), None
