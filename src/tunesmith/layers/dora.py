"""A linear layer whose weight is trained as length and direction: ``W' = m (W + scale B A) / ||W + scale B A||``.

DoRA (Liu et al. 2024, arXiv 2402.09353): every row of the weight (the weights of one output) has a trained length m, and
LoRA trains the direction. m starts as the length of the base's rows, so that step 0 computes the base model. The length of
``W + scale B A`` follows A and B but gets no gradient (section 4.3): PEFT does the same, and the gradients equal PEFT's.
Under dropout the whole reparametrised part sees the dropped input, as PEFT defines it:
``y = W x + b + (g - 1) (W x~) + g scale B A x~`` with ``g = m / ||W + scale B A||`` and x~ the input after dropout.

Cost over LoRA: a second product with W under dropout (``W (x - x~)`` is added; without dropout one product serves both),
one more saved tensor of the output's size for the gradient of m, and the row lengths, in every forward pass. The lengths
are taken in blocks of rows in fp32, so that no second weight is ever held. Keeping them between passes was refused: nothing
tells for sure that A and B are still the same (``.data`` and optimizers' own kernels write unseen). So decode with a merged
layer, which costs nothing. In bf16 the product is rounded before its length is applied, as in PEFT, so that a change of
length below the grid of bf16 (0.4 %) shows only when it has grown; the gradient of m, in fp32, sees to that.

Where a base in fp16 meets an fp32 input, the products with W run in fp16 with rows scaled, as in ``LoRALinear``.

Layers that read the same input are not computed together (``LoRAGroup``): the lengths tie every output to its own row.

Shape suffixes: T tokens (all leading dimensions flattened), I in_features, O out_features, R rank, P some of the
rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.fp16_scaled_mm import OverflowRows, scaled_mm, scaled_mm_back
from tunesmith.kernels.lora import lora_matmul
from tunesmith.layers.dropout import Mask, draw_mask, drop
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.quantized import QuantizedLinear

ROWS = 1024  # rows of the weight whose length is taken at a time: 16 MB of fp32 for 4,096 columns


def row_norm_O(weight_OI: Tensor, lora_A_RI: Tensor, lora_B_OR: Tensor, scale: float) -> Tensor:
    """Length of every row of ``W + scale B A``, shape (O,), in the dtype of A."""
    lengths = []
    for rows_PI, B_PR in zip(weight_OI.split(ROWS), lora_B_OR.split(ROWS), strict=True):
        sum_PI = torch.addmm(rows_PI.to(lora_A_RI.dtype), B_PR, lora_A_RI, alpha=scale)
        lengths.append(torch.linalg.vector_norm(sum_PI, dim=1))
    return torch.cat(lengths)


def dora_weight_OI(weight_OI: Tensor, lora_A_RI: Tensor, lora_B_OR: Tensor, magnitude_O: Tensor, scale: float) -> Tensor:
    """The weight that a trained layer amounts to, shape (O, I), in the dtype of A: what merging writes."""
    sum_OI = torch.addmm(weight_OI.to(lora_A_RI.dtype), lora_B_OR, lora_A_RI, alpha=scale)
    return sum_OI * (magnitude_O / torch.linalg.vector_norm(sum_OI, dim=1))[:, None]


def _rescaled(x: Tensor, mask: Mask | None, keep: float) -> Tensor:
    """The input after dropout: zero where it struck, and the rest larger by ``1 / keep``."""
    return x if mask is None else drop(x, mask).mul_(1.0 / keep)


def _times(y_TO: Tensor, gain_O: Tensor) -> Tensor:
    """The product in the dtype of y, with the gain unrounded: in bf16 a gain of 1.006 would be 1.0078."""
    return torch.mul(y_TO, gain_O, out=torch.empty_like(y_TO))


def _product_back(dy_TO: Tensor, weight_OI: Tensor, overflow: OverflowRows | None) -> Tensor:
    """``dy W``; an fp32 gradient meets an fp16 weight with its rows scaled."""
    if dy_TO.dtype == weight_OI.dtype:
        return dy_TO @ weight_OI
    return scaled_mm_back(dy_TO, weight_OI, overflow=overflow)


class _DoRAFunction(torch.autograd.Function):
    """The layer as one step of the graph; the frozen weight stays outside it, dropout is kept as a seed."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, layer: "DoRALinear", dropout: float, seed: int, A_RI: Tensor, B_OR: Tensor, m_O: Tensor
    ) -> Tensor:
        dtype = x_TI.dtype
        weight_OI = layer.base_OI(torch.float16 if layer.in_fp16 else dtype)
        norm_O = row_norm_O(weight_OI, A_RI, B_OR, layer.scale)
        gain_O = m_O / norm_O
        mask = draw_mask(x_TI, dropout, seed) if dropout else None
        left_TI = _rescaled(x_TI, mask, 1.0 - dropout)
        xA_TR = left_TI @ A_RI.to(dtype).T
        scaled = weight_OI.dtype != dtype
        if scaled:
            directed_TO = scaled_mm(left_TI, weight_OI, overflow=layer.overflow).addmm_(xA_TR, B_OR.T, alpha=layer.scale)
        else:
            directed_TO = lora_matmul(left_TI, weight_OI, xA_TR, B_OR.to(dtype), layer.scale, None)
        y_TO = _times(directed_TO, gain_O)
        if mask is not None and scaled:
            y_TO.add_(scaled_mm(x_TI - left_TI, weight_OI, overflow=layer.overflow))
        elif mask is not None:
            y_TO.addmm_(x_TI - left_TI, weight_OI.T)
        if layer.bias is not None:
            y_TO.add_(layer.bias)
        ctx.save_for_backward(x_TI, A_RI, B_OR, norm_O, gain_O, xA_TR, directed_TO)
        ctx.layer, ctx.dropout, ctx.seed = layer, dropout, seed
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, A_RI, B_OR, norm_O, gain_O, xA_TR, directed_TO = ctx.saved_tensors
        layer, dy_TO = ctx.layer, grads[0]
        mask = draw_mask(x_TI, ctx.dropout, ctx.seed) if ctx.dropout else None
        keep = 1.0 - ctx.dropout
        dm_O = (dy_TO * directed_TO).sum(0, dtype=norm_O.dtype) / norm_O
        directed_dy_TO = _times(dy_TO, gain_O)
        dyB_TR = (directed_dy_TO @ B_OR.to(dy_TO.dtype)).mul_(layer.scale)
        dA_RI = (dyB_TR.T @ _rescaled(x_TI, mask, keep)).to(A_RI.dtype)
        dB_OR = (directed_dy_TO.T @ xA_TR).to(B_OR.dtype).mul_(layer.scale)
        dx_TI = None
        if ctx.needs_input_grad[0]:
            weight_OI = layer.base_OI(torch.float16 if layer.in_fp16 else dy_TO.dtype)
            A_RI = A_RI.to(dy_TO.dtype)
            if mask is None:
                dx_TI = _product_back(directed_dy_TO, weight_OI, layer.overflow).addmm_(dyB_TR, A_RI)
            else:
                through_TI = _product_back(_times(dy_TO, gain_O - 1.0), weight_OI, layer.overflow).addmm_(dyB_TR, A_RI)
                dx_TI = _product_back(dy_TO, weight_OI, layer.overflow).add_(_rescaled(through_TI, mask, keep))
        return dx_TI, None, None, None, dA_RI, dB_OR, dm_O


class DoRALinear(LoRALinear):
    """A ``LoRALinear`` whose rows also have a trained length.

    Attributes:
        lora_magnitude_vector: shape (O,), fp32, at first the lengths of the base's rows (PEFT's name).
    """

    grouped = False

    def __init__(
        self, base: nn.Linear | QuantizedLinear, r: int, scale: float, dropout: float, generator: torch.Generator | None = None
    ):
        super().__init__(base, r, scale, dropout, generator)
        with torch.no_grad():
            lengths_O = row_norm_O(self.base_OI(torch.float32), self.lora_A, self.lora_B, 0.0)
        self.lora_magnitude_vector = nn.Parameter(lengths_O)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of x."""
        dropout = self.dropout if self.training else 0.0
        seed = self.dropout_seed() if dropout else 0
        x_TI = x.reshape(-1, x.shape[-1])
        y_TO = _DoRAFunction.apply(x_TI, self, dropout, seed, self.lora_A, self.lora_B, self.lora_magnitude_vector)
        return y_TO.view(*x.shape[:-1], -1)  # type: ignore[union-attr]

    @torch.no_grad()
    def delta_OI(self) -> Tensor:
        """The weight update, trained weight less base weight, shape (O, I), fp32."""
        weight_OI = self.base_OI(torch.float32).to(self.lora_A.dtype)
        return dora_weight_OI(weight_OI, self.lora_A, self.lora_B, self.lora_magnitude_vector, self.scale) - weight_OI
