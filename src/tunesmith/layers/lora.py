"""Linear layers with low-rank adapters: ``y = x W^T + b + scale * dropout(x) A^T B^T``.

LoRA (Hu et al. 2021, section 4.1): the pretrained weight stays frozen and only A (r x in) and B (out x r) are trained.
B starts at zero, so that step 0 computes exactly the base model; A starts from the Kaiming-uniform draw that PEFT
uses (``peft/tuners/lora/layer.py``), so that a run can be compared with PEFT's seed for seed.

**Layers that read the same input are one product.** q, k and v (or gate and up) form a ``LoRAGroup``: one pass over x
makes the rank-r products of all, one matrix product makes all outputs, and one makes all gradients of x. Dropout strikes
the common input once.

**The update is not rounded away.** ``bf16(x W^T) + bf16(x A^T B^T)``, as it is usually written, rounds the update to the
grid of the much larger product it is added to: 60 % of the early gain was lost so (docs/LOG.md). Here one product over
``[x | x A^T]`` and ``[W | scale B]`` adds both in fp32 and rounds once. For it a group keeps its frozen weights in one
tensor with R free columns at the right, where the B of the moment is written before each product; the layers' ``weight``
are views of that tensor, so nothing is held twice. The same product gives, backwards, the gradients of x and of x A^T.

**Little is saved.** The backward pass needs the input and the rank-r products. Where a norm stands before the layers
(``layers/norm.py``), the group takes it in: then the input of the norm is saved, which the residual stream keeps alive
anyway, and the normed values are made again. Dropout is saved as a seed. The gradients take the cheap order, through the
r-wide side: ``dA = (dy B)^T x``, never ``dW``.

Master weights are fp32 whatever the base dtype is; the products run in the dtype of x. Where a base in fp16 meets an fp32
input, the products with the base run in fp16 with rows scaled (``kernels/fp16_scaled_mm.py``) and come out in fp32. The r-wide
products stay in fp32 there: fresh B are 1e-6, where fp16 has one digit left, and the update needs no free columns, since
nothing is rounded after it.

Shape suffixes: T tokens (all leading dimensions flattened), I in_features, O out_features of one layer, N of all layers
of a group, R rank of one layer, S of all layers of a group together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.fp16_scaled_mm import scale_rows, scaled_mm_back
from tunesmith.kernels.lora import lora_matmul
from tunesmith.kernels.rms_norm import rms_norm_backward, rms_norm_forward
from tunesmith.layers.context import InStep
from tunesmith.layers.dropout import draw_kept, drop
from tunesmith.layers.half import HalfNF4Linear
from tunesmith.layers.nf4 import NF4Linear


@dataclass(frozen=True)
class Norm:
    """An RMS norm that stands before a group: frozen weight of shape (I,), ``offset`` 1 for the "1 + w" convention."""

    weight_I: Tensor
    eps: float
    offset: float


class LoRALinear(InStep, nn.Module):
    """An ``nn.Linear`` with frozen weight and a trainable low-rank adapter.

    Attributes:
        weight: frozen base weight, shape (O, I), the values of the layer it replaces; None where it is quantised.
        quantized: the frozen base weight in NF4, or None.
        bias: frozen base bias, shape (O,), or None.
        lora_A: shape (R, I), fp32, Kaiming-uniform.
        lora_B: shape (O, R), fp32, zeros.
        scale: factor on the update, ``alpha / r`` usually.
        in_fp16: the base is multiplied in fp16 with rows scaled where the input is fp32.
        group: the layers that it is computed with; itself alone at first.
    """

    def __init__(
        self, base: nn.Linear | NF4Linear, r: int, scale: float, dropout: float, generator: torch.Generator | None = None
    ):
        super().__init__()
        if isinstance(base, NF4Linear):
            self.quantized, self.weight = base.weight, None
        else:
            self.quantized, self.weight = None, nn.Parameter(base.weight.data, requires_grad=False)
        self.in_fp16 = isinstance(base, HalfNF4Linear) or (self.quantized is None and base.weight.dtype == torch.float16)
        bias = base.bias
        self.bias = nn.Parameter(bias.data, requires_grad=False) if isinstance(bias, Tensor) else None
        self.out_features, self.in_features = base.weight.shape
        device = base.weight.device
        drawn_RI = torch.empty(r, self.in_features, dtype=torch.float32)  # on the CPU: the same numbers for every device
        if r:
            nn.init.kaiming_uniform_(drawn_RI, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(drawn_RI.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r, dtype=torch.float32, device=device))
        self.scale = scale
        self.dropout = dropout
        self.group = LoRAGroup([self])

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of x."""
        assert len(self.group.layers) == 1, "this layer is computed by its group"
        return self.group(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    def base_OI(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight, shape (O, I); of a quantised layer valid until the next call."""
        if self.quantized is not None:
            return self.quantized.dense(dtype)
        assert self.weight is not None
        return self.weight

    @torch.no_grad()
    def delta_OI(self) -> Tensor:
        """The weight update ``scale * B A``, shape (O, I), fp32."""
        return (self.lora_B @ self.lora_A) * self.scale


class LoRAGroup:
    """Layers that read the same input and are computed together.

    Attributes:
        layers: in the order of their outputs.
        widths: output features of each.
    """

    def __init__(self, layers: Sequence[LoRALinear]):
        self.layers = list(layers)
        self.widths = [layer.out_features for layer in layers]
        self._ranks = [layer.lora_A.shape[0] for layer in layers]
        self._in_fp16 = self.layers[0].in_fp16
        self._whole: Tensor | None = None  # (N, I + S)
        for layer in layers:
            layer.group = self

    def __call__(self, x_TI: Tensor, norm: Norm | None = None) -> Tensor:
        """Outputs of all layers side by side, shape (T, N), of ``norm(x)`` where a norm is given."""
        parameters = [p for layer in self.layers for p in (layer.lora_A, layer.lora_B)]
        dropout = max(layer.dropout for layer in self.layers) if self.layers[0].training else 0.0
        seed = self.layers[0].dropout_seed() if dropout else 0
        return _GroupFunction.apply(x_TI, self, norm, dropout, seed, *parameters)  # type: ignore[return-value]

    def A_SI(self, dtype: torch.dtype) -> Tensor:
        """All A under each other."""
        if len(self.layers) == 1:
            return self.layers[0].lora_A.detach().to(dtype)
        return torch.cat([layer.lora_A.detach() for layer in self.layers]).to(dtype)

    def room(self, x_TX: Tensor) -> tuple[Tensor, Tensor]:
        """An empty ``[x | x A^T]`` of shape (T, I + S), in the dtype of x, and the view of its first I columns."""
        inputs = self.layers[0].in_features
        x_TK = x_TX.new_empty(x_TX.shape[0], inputs + sum(self._ranks))
        return x_TK, x_TK[:, :inputs]

    def outputs(self, x_TI: Tensor, x_TK: Tensor, kept: Tensor | None, keep: float) -> tuple[Tensor, Tensor]:
        """Outputs (T, N), and ``x A^T`` (T, S) for the backward pass.

        Args:
            x_TI: the input before dropout; it may be the view of ``room``.
            x_TK: ``room`` with the input in its first columns.
            kept: what dropout leaves; None for no dropout.
            keep: share of elements that dropout leaves.
        """
        xA_TS = x_TK[:, x_TI.shape[1] :]
        xA_TS.copy_(drop(x_TI, kept) @ self.A_SI(x_TI.dtype).T)
        return self.multiply(x_TK, keep), xA_TS.clone()

    def input_gradients(self, dy_TN: Tensor, kept: Tensor | None, keep: float) -> tuple[Tensor, Tensor]:
        """Gradients of x (T, I), before dropout, and of ``x A^T`` (T, S), both views of one tensor."""
        d_TK, A_SI = self.multiply_back(dy_TN, keep), self.A_SI(dy_TN.dtype)
        dx_TI, dxA_TS = d_TK.split((A_SI.shape[1], A_SI.shape[0]), 1)
        if kept is None:
            dx_TI.addmm_(dxA_TS, A_SI)
        else:
            dx_TI.add_(drop(dxA_TS @ A_SI, kept))
        return dx_TI, dxA_TS

    def multiply(self, x_TK: Tensor, keep: float) -> Tensor:
        """Outputs (T, N) from ``[x | x A^T]``; ``keep`` is the share of elements that dropout leaves."""
        if self._in_fp16 and x_TK.dtype == torch.float32:
            return self._multiply_half(x_TK, keep)
        if self.layers[0].quantized is None:
            whole_NK = self._augmented(x_TK.dtype, keep)
            return torch.nn.functional.linear(x_TK, whole_NK, self._bias_N())
        inputs = self.layers[0].in_features
        y_TN = x_TK.new_empty(x_TK.shape[0], sum(self.widths))
        for layer, columns, ranks in self._places():
            B_OR = layer.lora_B.detach().to(x_TK.dtype)
            weight_OI = layer.base_OI(x_TK.dtype)
            xA_TR = x_TK[:, inputs:][:, ranks]
            y_TN[:, columns] = lora_matmul(x_TK[:, :inputs], weight_OI, xA_TR, B_OR, layer.scale / keep, layer.bias)
        return y_TN

    def _multiply_half(self, x_TK: Tensor, keep: float) -> Tensor:
        """``multiply`` of an fp32 input with an fp16 base; the rows are scaled once for all layers."""
        inputs = self.layers[0].in_features
        rows, y_TN = scale_rows(x_TK[:, :inputs], self.layers[0].overflow), x_TK.new_empty(x_TK.shape[0], sum(self.widths))
        for layer, columns, ranks in self._places():
            y_TO = rows.mm(layer.base_OI(torch.float16).T, out=y_TN[:, columns])
            y_TO.addmm_(x_TK[:, inputs:][:, ranks], layer.lora_B.detach().T, alpha=layer.scale / keep)
            if layer.bias is not None:
                y_TO.add_(layer.bias)
        return y_TN

    def multiply_back(self, dy_TN: Tensor, keep: float) -> Tensor:
        """Gradients (T, I + S) of ``[x | x A^T]`` from those of the outputs."""
        half = self._in_fp16 and dy_TN.dtype == torch.float32
        if self.layers[0].quantized is None and not half:
            return dy_TN @ self._augmented(dy_TN.dtype, keep)
        d_TK, d_TI = self.room(dy_TN)
        for number, (layer, columns, ranks) in enumerate(self._places()):
            dy_TO = dy_TN[:, columns]
            weight_OI = layer.base_OI(torch.float16 if half else dy_TN.dtype)
            if half:
                # Layers have gradients of different sizes, so each has its own scale.
                part_TI = scaled_mm_back(dy_TO, weight_OI, out=None if number else d_TI, overflow=layer.overflow)
                if number:
                    d_TI.add_(part_TI)
            elif number:
                d_TI.addmm_(dy_TO, weight_OI)
            else:
                torch.mm(dy_TO, weight_OI, out=d_TI)
            d_TK[:, d_TI.shape[1] :][:, ranks] = (dy_TO @ layer.lora_B.detach().to(dy_TN.dtype)).mul_(layer.scale / keep)
        return d_TK

    def project_back(self, dy_TN: Tensor, keep: float) -> Tensor:
        """Gradients (T, S) of ``x A^T`` alone, where nobody asks for those of x."""
        parts = [
            (dy_TN[:, columns] @ layer.lora_B.detach().to(dy_TN.dtype)).mul_(layer.scale / keep)
            for layer, columns, _ in self._places()
        ]
        return torch.cat(parts, 1)

    def adapter_gradients(self, dy_TN: Tensor, x_TI: Tensor, xA_TS: Tensor, dxA_TS: Tensor, keep: float) -> list[Tensor]:
        """Gradients of lora_A and lora_B of each layer in turn, fp32 (or fp64); x as dropout left it."""
        dA_SI = dxA_TS.T @ x_TI
        found: list[Tensor] = []
        for layer, columns, ranks in self._places():
            found.append(dA_SI[ranks].to(layer.lora_A.dtype))
            dB_OR = (dy_TN[:, columns].T @ xA_TS[:, ranks]).to(layer.lora_B.dtype)
            found.append(dB_OR.mul_(layer.scale / keep))
        return found

    def _places(self) -> list[tuple[LoRALinear, slice, slice]]:
        """Each layer with its columns of the outputs and of the rank-r products."""
        found, column, rank = [], 0, 0
        for layer, width, r in zip(self.layers, self.widths, self._ranks, strict=True):
            found.append((layer, slice(column, column + width), slice(rank, rank + r)))
            column, rank = column + width, rank + r
        return found

    def _augmented(self, dtype: torch.dtype, keep: float) -> Tensor:
        """``[W | scale B]`` of all layers, shape (N, I + S): B stands in its layer's rows and columns, zeros elsewhere."""
        inputs = self.layers[0].in_features
        if self._whole is None:
            first = self.layers[0].base_OI(dtype)
            self._whole = torch.zeros(sum(self.widths), inputs + sum(self._ranks), dtype=first.dtype, device=first.device)
            for layer, rows, _ in self._places():
                self._whole[rows, :inputs] = layer.base_OI(dtype)
                assert layer.weight is not None
                layer.weight.data = self._whole[rows, :inputs]
        for layer, rows, ranks in self._places():
            torch.mul(layer.lora_B.detach(), layer.scale / keep, out=self._whole[:, inputs:][rows, ranks])
        return self._whole

    def _bias_N(self) -> Tensor | None:
        given = [layer.bias for layer in self.layers if layer.bias is not None]
        if not given:
            return None
        return torch.cat(
            [given[0].new_zeros(n) if x.bias is None else x.bias for x, n in zip(self.layers, self.widths, strict=True)]
        )


class _GroupFunction(torch.autograd.Function):
    """All layers of a group, and the norm before them, as one step of the graph; the frozen weights stay outside it."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, group: LoRAGroup, norm: Norm | None, dropout: float, seed: int, *_: Tensor) -> Tensor:
        rstd_T, normed_TI = None, x_TI
        if norm is not None:
            normed_TI, rstd_T = rms_norm_forward(x_TI, norm.weight_I, norm.eps, norm.offset)
        x_TK, room_TI = group.room(x_TI)
        room_TI.copy_(normed_TI)
        kept = draw_kept(normed_TI, dropout, seed) if dropout else None
        y_TN, xA_TS = group.outputs(normed_TI, x_TK, kept, 1.0 - dropout)
        ctx.save_for_backward(x_TI, rstd_T, xA_TS)
        ctx.group, ctx.norm, ctx.dropout, ctx.seed = group, norm, dropout, seed
        return y_TN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, rstd_T, xA_TS = ctx.saved_tensors
        group, norm, keep, dy_TN = ctx.group, ctx.norm, 1.0 - ctx.dropout, grads[0]
        normed_TI = x_TI
        if norm is not None:
            normed_TI, _ = rms_norm_forward(x_TI, norm.weight_I, norm.eps, norm.offset)
        kept = draw_kept(normed_TI, ctx.dropout, ctx.seed) if ctx.dropout else None
        dx_TI: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx_TI, dxA_TS = group.input_gradients(dy_TN, kept, keep)
        else:
            dxA_TS = group.project_back(dy_TN, keep)
        found = group.adapter_gradients(dy_TN, drop(normed_TI, kept), xA_TS, dxA_TS, keep)
        if dx_TI is not None and norm is not None:
            dx_TI = rms_norm_backward(dx_TI, x_TI, norm.weight_I, rstd_T, norm.offset)
        return dx_TI, None, None, None, None, *found
