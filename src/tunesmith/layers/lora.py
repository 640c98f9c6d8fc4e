"""A linear layer with a low-rank adapter: ``y = x W^T + b + (alpha / r) * dropout(x) A^T B^T``.

LoRA (Hu et al. 2021, section 4.1): the pretrained weight stays frozen and only A (r x in) and B (out x r) are trained.
B starts at zero, so that step 0 computes exactly the base model; A starts from the Kaiming-uniform draw that PEFT
uses (``peft/tuners/lora/layer.py``), so that a run can be compared with PEFT's seed for seed.

The forward and backward passes are written out by hand as one autograd function, because autograd's own record keeps
two inputs per layer (x for nothing, dropout(x) for A) and multiplies a gradient that is zero wherever dropout struck.
Here the layer saves its input once (the tensor is shared with the q, k and v that read the same one) and the rank-r
product; the gradients are taken in the cheap order, through the r-wide side: ``dA = (dy B)^T x``, never ``dW``.

Dropout strikes single elements of x, as in PEFT. The mask is one byte an element, cut from 64-bit random integers four
at a time: ``bernoulli_`` on a CPU costs 12 ns an element and was 23 % of a training step. The probability is rounded to
a multiple of 2^-16 (0.05 becomes 0.050003).

Master weights are fp32 whatever the base dtype is; the products run in the base dtype.

Shape suffixes: T tokens (all leading dimensions flattened), I in_features, O out_features, R rank.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _draw_dropped(x: Tensor, probability: float) -> Tensor:
    """True where an element of ``x`` is dropped; shape of x, bool, from torch's global generator."""
    words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    threshold = -(2**15) + round(probability * 2**16)
    return (words.view(torch.int16)[: x.numel()] < threshold).view(x.shape)


def _without(x: Tensor, dropped: Tensor | None) -> Tensor:
    return x if dropped is None else torch.where(dropped, 0.0, x)


class _LoRAFunction(torch.autograd.Function):
    """``base(x) + scale * (x where not dropped) A^T B^T`` with the frozen base weight outside the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        lora_A_RI: Tensor,
        lora_B_OR: Tensor,
        drop_TI: Tensor | None,
        scale: float,
    ) -> Tensor:
        A_RI, B_OR = lora_A_RI.to(x_TI.dtype), lora_B_OR.to(x_TI.dtype)
        xA_TR = _without(x_TI, drop_TI) @ A_RI.T
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        y_TO = y_TO.addmm_(xA_TR, B_OR.T, alpha=scale)
        ctx.save_for_backward(x_TI, weight_OI, lora_A_RI, lora_B_OR, drop_TI, xA_TR)
        ctx.scale = scale
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI, lora_A_RI, lora_B_OR, drop_TI, xA_TR = ctx.saved_tensors
        dy_TO = grads[0]
        A_RI, B_OR = lora_A_RI.to(dy_TO.dtype), lora_B_OR.to(dy_TO.dtype)
        dyB_TR = (dy_TO @ B_OR).mul_(ctx.scale)
        dA_RI = (dyB_TR.T @ _without(x_TI, drop_TI)).to(lora_A_RI.dtype)
        dB_OR = (dy_TO.T @ xA_TR).mul_(ctx.scale).to(lora_B_OR.dtype)
        dx_TI = None
        if ctx.needs_input_grad[0]:
            dx_TI = dy_TO @ weight_OI
            if drop_TI is None:
                dx_TI.addmm_(dyB_TR, A_RI)
            else:
                dx_TI.add_(_without(dyB_TR @ A_RI, drop_TI))
        return dx_TI, None, None, dA_RI, dB_OR, None, None


class LoRALinear(nn.Module):
    """An ``nn.Linear`` with frozen weight and a trainable low-rank adapter.

    Attributes:
        weight: frozen base weight, shape (O, I), the very tensor of the layer it replaces.
        bias: frozen base bias, shape (O,), or None.
        lora_A: shape (R, I), fp32, Kaiming-uniform.
        lora_B: shape (O, R), fp32, zeros.
        scale: ``alpha / r``.
    """

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(base.weight.data, requires_grad=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.data, requires_grad=False)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, dtype=torch.float32, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)
        self.scale = alpha / r
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of x."""
        x_TI = x.reshape(-1, x.shape[-1])
        drop_TI, scale = None, self.scale
        if self.training and self.dropout > 0.0:
            drop_TI = _draw_dropped(x_TI, self.dropout)
            scale = self.scale / (1.0 - self.dropout)
        y_TO = _LoRAFunction.apply(x_TI, self.weight, self.bias, self.lora_A, self.lora_B, drop_TI, scale)
        return y_TO.reshape(*x.shape[:-1], -1)  # type: ignore[union-attr]

    @torch.no_grad()
    def delta_OI(self) -> Tensor:
        """The weight update ``scale * B A``, shape (O, I), fp32."""
        return (self.lora_B @ self.lora_A) * self.scale
