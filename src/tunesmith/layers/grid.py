"""A linear layer that trains the weight of the file that will be deployed: ``y = x round(W + scale B A)^T``.

Quantisation-aware training onto the frozen grid of a GGUF's blocks (``kernels/grid.py``). What is computed with, at every step,
is what llama.cpp will read from the file; what is trained are A and B, as in LoRA. The gradient goes straight through the
rounding (Bengio et al. 2013, arXiv 1308.3432): it is that of ``x (W + scale B A)^T``, so A and B get theirs in the cheap order
through the r-wide side, and no dense gradient of a weight is ever made.

**Dropout stays out of the rounding.** Which weight a file holds cannot depend on a draw. The layer computes ``x round(W + scale
B A)^T + (x~ - x) scale (B A)^T``, x~ the input after dropout: its expectation is the rounded product, and the gradients of A
and B are those of LoRA under the same mask.

**The rounded weight is made once a step**, since A and B stand still within it: one dense weight beside the base, and nothing
more in each pack. Layers that read the same input are not computed together; a rounding ties every output to its own blocks.

Shape suffixes: T tokens (all leading dimensions flattened), I in_features, O out_features, R rank.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.blocks import Blocks, dequantize_blocks
from tunesmith.kernels.grid import blocks_on_grid, round_to_grid
from tunesmith.layers.dropout import Mask, draw_mask, drop
from tunesmith.layers.lora import LoRALinear


class GridBase(nn.Linear):
    """A dense frozen layer that computes with its weight as a file holds it.

    Args:
        linear: whose weight and bias it takes over.
        like: the blocks of that weight in the file.
    """

    def __init__(self, linear: nn.Linear, like: Blocks):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.like = like

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of the input."""
        return nn.functional.linear(input, dequantize_blocks(self.like, input.dtype), self.bias)


class GridLinear(LoRALinear):
    """A ``LoRALinear`` whose trained weight lies on the grid of a file."""

    grouped = False
    like_raw: Tensor

    def __init__(self, base: GridBase, r: int, scale: float, dropout: float, generator: torch.Generator | None = None):
        super().__init__(base, r, scale, dropout, generator)
        self.register_buffer("like_raw", base.like.raw, persistent=False)
        self.kind = base.like.kind

    @property
    def like(self) -> Blocks:
        """The blocks whose grid is kept."""
        return Blocks(self.like_raw, self.kind, (self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of x."""
        dropout = self.dropout if self.training else 0.0
        seed = self.dropout_seed() if dropout else 0
        y_TO = _GridFunction.apply(x.reshape(-1, x.shape[-1]), self, dropout, seed, self.lora_A, self.lora_B)
        return y_TO.view(*x.shape[:-1], -1)  # type: ignore[union-attr]

    @torch.no_grad()
    def rounded_OI(self, dtype: torch.dtype) -> Tensor:
        """The weight that the file holds, shape (O, I)."""
        assert self.weight is not None
        if self.context is None:
            return self._round(dtype)
        return self.context.cache.get(self, "rounded", dtype, lambda: self._round(dtype))

    def blocks(self) -> Blocks:
        """The trained weight as the file holds it."""
        return blocks_on_grid(self.base_OI(torch.float32), self.lora_A.detach(), self.lora_B.detach(), self.scale, self.like)

    def _round(self, dtype: torch.dtype) -> Tensor:
        weight_OI = self.base_OI(dtype)
        out_OI = torch.empty(weight_OI.shape, dtype=dtype, device=weight_OI.device)
        return round_to_grid(weight_OI, self.lora_A.detach(), self.lora_B.detach(), self.scale, self.like, out_OI)

    @torch.no_grad()
    def delta_OI(self) -> Tensor:
        """The weight update, the file's weight less the base's, shape (O, I), fp32."""
        return self._round(torch.float32) - self.base_OI(torch.float32).float()

    @torch.no_grad()
    def merged_OI(self) -> Tensor:
        """The weight that the file holds, shape (O, I), fp32."""
        return self._round(torch.float32)


class _GridFunction(torch.autograd.Function):
    """The layer as one step of the graph; the weights stay outside it, dropout is kept as a seed."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, layer: GridLinear, dropout: float, seed: int, A_RI: Tensor, B_OR: Tensor) -> Tensor:
        bias_O = None if layer.bias is None else layer.bias.to(x_TI.dtype)
        y_TO = nn.functional.linear(x_TI, layer.rounded_OI(x_TI.dtype), bias_O)
        if dropout:
            struck_TI = _struck(x_TI, draw_mask(x_TI, dropout, seed), 1.0 - dropout).sub_(x_TI)
            y_TO.addmm_(struck_TI @ A_RI.to(x_TI.dtype).T, B_OR.to(x_TI.dtype).T, alpha=layer.scale)
        ctx.save_for_backward(x_TI, A_RI, B_OR)
        ctx.layer, ctx.dropout, ctx.seed = layer, dropout, seed
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, A_RI, B_OR = ctx.saved_tensors
        layer, dy_TO, keep = ctx.layer, grads[0], 1.0 - ctx.dropout
        mask = draw_mask(x_TI, ctx.dropout, ctx.seed) if ctx.dropout else None
        left_TI, A_cast_RI = _struck(x_TI, mask, keep), A_RI.to(dy_TO.dtype)
        dyB_TR = (dy_TO @ B_OR.to(dy_TO.dtype)).mul_(layer.scale)
        dA_RI = (dyB_TR.T @ left_TI).to(A_RI.dtype)
        dB_OR = (dy_TO.T @ (left_TI @ A_cast_RI.T)).to(B_OR.dtype).mul_(layer.scale)
        dx_TI = None
        if ctx.needs_input_grad[0]:
            dx_TI = dy_TO @ layer.rounded_OI(dy_TO.dtype)
            if mask is not None:
                through_TI = dyB_TR @ A_cast_RI
                dx_TI.add_(_struck(through_TI, mask, keep)).sub_(through_TI)
        return dx_TI, None, None, None, dA_RI, dB_OR


def _struck(x_TI: Tensor, mask: Mask | None, keep: float) -> Tensor:
    """The input after dropout: zero where it struck, and the rest larger by ``1 / keep``."""
    return x_TI if mask is None else drop(x_TI, mask).mul_(1.0 / keep)
