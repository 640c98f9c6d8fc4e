"""Frozen linear layers whose weight is quantised in memory and dense only while it is multiplied.

QLoRA (Dettmers et al. 2023, section 3): the base model lies in memory at 4 to 8 bits a weight, and each product makes the dense
weight anew, forwards and again backwards. Nothing dense is saved for the backward pass; since the base is frozen and linear,
not even the input is. How the weight lies is its own business: NF4 (``layers/nf4.py``), or the blocks of the GGUF that is
deployed (``layers/blocks.py``).

Shape suffixes: T tokens, I in_features, O out_features.
"""

from typing import Any

from torch import Tensor, autograd, nn
from torch.autograd.function import once_differentiable

from tunesmith.kernels.nf4 import FEW_TOKENS, nf4_matmul
from tunesmith.layers.blocks import BlockWeight
from tunesmith.layers.nf4 import NF4Weight

QuantizedWeight = NF4Weight | BlockWeight


class QuantizedLinear(nn.Module):
    """``y = x W^T + b`` with a frozen W in NF4, or in the blocks of a GGUF.

    Args:
        weight: shape (O, I).
        bias: shape (O,), or None.
    """

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of x."""
        y_TO = _Product.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        assert isinstance(y_TO, Tensor)
        return y_TO.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As ``nn.Linear``, and the bits."""
        bits = 8 * self.weight.nbytes / self.weight.numel()
        return f"in_features={self.in_features}, out_features={self.out_features}, bits_per_weight={bits:.2f}"


class _Product(autograd.Function):
    """The product as one step of the graph; dequantises again backwards and saves no tensor at all."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight: QuantizedWeight, bias_O: Tensor | None) -> Tensor:
        ctx.weight = weight
        bias_O = None if bias_O is None else bias_O.to(x_TI.dtype)
        if x_TI.is_cuda and x_TI.shape[0] <= FEW_TOKENS and isinstance(weight, NF4Weight):
            y_TO = nf4_matmul(x_TI.contiguous(), weight.q)
            return y_TO if bias_O is None else y_TO.add_(bias_O)
        return nn.functional.linear(x_TI, weight.dense(x_TI.dtype), bias_O)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None]:
        dy_TO = grads[0]
        dx_TI = dy_TO @ ctx.weight.dense(dy_TO.dtype) if ctx.needs_input_grad[0] else None
        return dx_TI, None, dy_TO.sum(0) if ctx.needs_input_grad[2] else None
