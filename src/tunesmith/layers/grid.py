"""A linear layer that trains the weight of the file that will be deployed: ``y = x round(W + scale B A)^T``.

Quantisation-aware training onto the frozen grid of a GGUF's blocks (``kernels/grid.py``). What is computed with, at every step,
is what llama.cpp will read from the file; what is trained are A and B, as in LoRA. The gradient goes straight through the
rounding (Bengio et al. 2013, arXiv 1308.3432): it is that of ``x (W + scale B A)^T``, so A and B get theirs in the cheap order
through the r-wide side, and no dense gradient of a weight is ever made.

**Dropout stays out of the rounding.** Which weight a file holds cannot depend on a draw. The layer computes ``x round(W + scale
B A)^T + (x~ - x) scale (B A)^T``, x~ the input after dropout: its expectation is the rounded product, and the gradients of A
and B are those of LoRA under the same mask.

**The rounded weight is made once a step**, since A and B stand still within it: one dense weight beside the base, and nothing
more in each pack. Layers that read the same input are one product, as those of plain LoRA (``GridGroup``): their rounded
weights stand under each other, and all that is fused around such a group serves here too. A layer of the file that carries no
adapter computes with the values that lie there.

Shape suffixes: T tokens (all leading dimensions flattened), I in_features, O out_features, M outputs of a group, R rank,
S ranks of a group, Z features and ranks.
"""

import torch
from torch import Tensor, nn

from tunesmith.kernels.blocks import Blocks, dequantize_blocks
from tunesmith.kernels.grid import MatrixGrid, blocks_on_grid, grid_of, round_to_grid
from tunesmith.kernels.upload import upload
from tunesmith.layers.dropout import Mask, add_dropped_, drop
from tunesmith.layers.lora import LoRAGroup, LoRALinear


class GridBase(nn.Linear):
    """A dense frozen layer that computes with its weight as a file holds it.

    Args:
        linear: whose weight and bias it takes over.
        like: the blocks of that weight in the file, on the CPU.
    """

    def __init__(self, linear: nn.Linear, like: Blocks):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.like = like

    def as_in_file(self) -> nn.Linear:
        """A plain layer with the file's values, rounded once to the dtype of the weight."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        values_OI = upload(dequantize_blocks(self.like, self.weight.dtype), self.weight.device)
        plain.weight = nn.Parameter(values_OI, requires_grad=False)
        plain.register_parameter("bias", self.bias)
        return plain.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of the input."""
        return nn.functional.linear(input, upload(dequantize_blocks(self.like, input.dtype), input.device), self.bias)


class GridLinear(LoRALinear):
    """A ``LoRALinear`` whose trained weight lies on the grid of a file.

    Attributes:
        like: the blocks whose grid is kept, on the CPU.
    """

    def __init__(self, base: GridBase, r: int, scale: float, dropout: float, generator: torch.Generator | None = None):
        super().__init__(base, r, scale, dropout, generator)
        self.like, device = base.like, base.weight.device
        kind, scales, minima = grid_of(base.like)
        self.register_buffer("grid_scales", None if scales is None else upload(scales, device), persistent=False)
        self.register_buffer("grid_minima", None if minima is None else upload(minima, device), persistent=False)
        self.kind = kind
        self.group = GridGroup([self])

    @property
    def grid(self) -> MatrixGrid:
        """That is kept."""
        return MatrixGrid(self.kind, self.grid_scales, self.grid_minima)  # type: ignore[arg-type]

    def rounded_OI(self, dtype: torch.dtype) -> Tensor:
        """The weight that the file holds, shape (O, I)."""
        return self.round_into(torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.lora_A.device))

    def round_into(self, out_OI: Tensor) -> Tensor:
        """The same, written to a tensor."""
        weight_OI = self.base_OI(out_OI.dtype)
        return round_to_grid(weight_OI, self.lora_A.detach(), self.lora_B.detach(), self.scale, self.grid, out_OI)

    def blocks(self) -> Blocks:
        """The trained weight as the file holds it, on the CPU."""
        return blocks_on_grid(self.base_OI(torch.float32), self.lora_A.detach(), self.lora_B.detach(), self.scale, self.like)

    @torch.no_grad()
    def delta_OI(self) -> Tensor:
        """The weight update, the file's weight less the base's, shape (O, I), fp32."""
        return self.merged_OI() - self.base_OI(torch.float32).float()

    @torch.no_grad()
    def merged_OI(self) -> Tensor:
        """The weight that the file holds, shape (O, I), fp32."""
        return self.rounded_OI(torch.float32)


class GridGroup(LoRAGroup):
    """Layers that read the same input, of which some at least train their weight on a grid."""

    def augmented_input(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """An empty tensor for the input of shape (T, I), twice: nothing stands beside it."""
        x_TI = like.new_empty(like.shape[0], self.layers[0].in_features)
        return x_TI, x_TI

    def outputs(
        self, x_TI: Tensor, x_TZ: Tensor, mask: Mask | None, keep: float, is_read: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Outputs (T, M), and ``x A^T`` (T, S) after dropout for the backward pass; see ``LoRAGroup.outputs``."""
        A_SI = self.A_SI(x_TI.dtype)
        xA_TS = drop(x_TI, mask) @ A_SI.T
        if not is_read:
            return x_TI.new_empty(len(x_TI), sum(self.widths)), xA_TS
        y_TM = nn.functional.linear(x_TI, self.rounded_MI(x_TI.dtype), self._bias_M())
        if mask is not None:
            missing_TS = xA_TS / keep - x_TI @ A_SI.T
            for layer, columns, ranks in self._slices():
                B_OR = layer.lora_B.detach().to(x_TI.dtype)
                y_TM[:, columns].addmm_(missing_TS[:, ranks], B_OR.T, alpha=layer.scale)
        return y_TM, xA_TS

    def input_gradients(self, dy_TM: Tensor, mask: Mask | None, keep: float) -> tuple[Tensor, Tensor]:
        """Gradients of x (T, I), before dropout, and of ``x A^T`` (T, S) after it."""
        A_SI, dxA_TS = self.A_SI(dy_TM.dtype), self.grad_xA(dy_TM, keep)
        dx_TI = dy_TM @ self.rounded_MI(dy_TM.dtype)
        if mask is not None:
            through_TI = dxA_TS @ A_SI
            add_dropped_(dx_TI, through_TI, mask).sub_(through_TI, alpha=keep)
        return dx_TI, dxA_TS

    def grad_xA(self, dy_TM: Tensor, keep: float) -> Tensor:
        """See ``LoRAGroup.grad_xA``; as wide as ``A_SI``, which a GPU fills up."""
        dxA_TS = super().grad_xA(dy_TM, keep)
        spare = (self._columns(dy_TM.dtype) - dxA_TS.shape[1]) if dy_TM.is_cuda else 0
        return nn.functional.pad(dxA_TS, (0, spare)) if spare else dxA_TS

    @torch.no_grad()
    def rounded_MI(self, dtype: torch.dtype) -> Tensor:
        """The weights of all layers as the file holds them, under each other, shape (M, I); once a step."""
        context = self.layers[0].context
        return self._round(dtype) if context is None else context.cache.get(self, "rounded", dtype, lambda: self._round(dtype))

    def _round(self, dtype: torch.dtype) -> Tensor:
        first = self.layers[0]
        out_MI = torch.empty(sum(self.widths), first.in_features, dtype=dtype, device=first.lora_A.device)
        for layer, rows, _ in self._slices():
            if isinstance(layer, GridLinear):
                layer.round_into(out_MI[rows])
            else:
                out_MI[rows].copy_(layer.base_OI(dtype))
        return out_MI
