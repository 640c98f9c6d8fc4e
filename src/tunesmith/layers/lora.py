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
A quantised group does the same on a GPU: its weights are dequantised into the left columns of the process-wide buffer, beside
their B, in one launch (``kernels/augmented.py``). It costs memory for gate and up at once, 120 MB for an 8B model. On a CPU,
which has no launches to save, each layer is dequantised and multiplied while it lies in the cache.

**On a GPU a group is three launches forwards and four back**, the norm not counted: the weight, ``[x | drop(x) A^T]`` and the
wide product; the weight, the wide product, the update of the gradient of x, and the gradients of all A and B. Three of them are
those of ``kernels/triton/adapter.py``, whose formulas stand here as the way of a CPU. What the backward pass needs of x, normed
and dropped, is made where it is read and never in memory. A layer of an 8B model takes 60 launches with dropout and
recomputation, 147 as long as a library's products, casts and copies did it (counted, docs/LOG.md).

**Rows are aligned.** GPUs load 16 bytes at once where every row begins at a multiple of that, and element by element where
not, at half the speed or less. So there the free columns are filled up with zeros, in A and in B, until a row is a multiple of
16 elements: ranks 1, 4, 8 and 12 run the kernels of rank 16.

**Answers come a token a row.** Where a few rows meet a quantised weight on a GPU and no gradient is asked for, the weight
is unpacked inside the product and never written (``kernels/nf4.py``), and nothing is kept.

**Little is saved.** The backward pass needs the input and the rank-r products. Where a norm stands before the layers
(``layers/norm.py``), the group takes it in: then the input of the norm is saved, which the residual stream keeps alive
anyway, and the normed values are made again. Dropout is saved as a seed. The gradients take the cheap order, through the
r-wide side: ``dA = (dy B)^T x``, never ``dW``.

Master weights are fp32 whatever the base dtype is; the products run in the dtype of x. Where a base in fp16 meets an fp32
input, the products with the base run in fp16 with rows scaled (``kernels/fp16_scaled_mm.py``) and come out in fp32. The r-wide
products stay in fp32 there: fresh B are 1e-6, where fp16 has one digit left, and the update needs no free columns, since
nothing is rounded after it.

Shape suffixes: T tokens (all leading dimensions flattened), I in_features, O out_features, M outputs of a group, R rank,
S ranks of a group, Z features and ranks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels import triton as on_gpu
from tunesmith.kernels.augmented import Part, fill_augmented_
from tunesmith.kernels.fp16_scaled_mm import scale_rows, scaled_mm_back
from tunesmith.kernels.lora import lora_matmul
from tunesmith.kernels.nf4 import FEW_TOKENS, Update, nf4_matmul
from tunesmith.kernels.rms_norm import rms_norm_backward, rms_norm_forward
from tunesmith.kernels.upload import upload
from tunesmith.layers.blocks import BlockWeight
from tunesmith.layers.context import InStep
from tunesmith.layers.dense_buffer import DENSE
from tunesmith.layers.dropout import Mask, SeededMask, add_dropped_, draw_mask, drop
from tunesmith.layers.half import HalfQuantizedLinear
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.layers.quantized import QuantizedLinear

ALIGNED = 16  # elements; Triton takes a stride as aligned where it is a multiple of 16, cuBLAS where it is one of 16 bytes


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
        quantized: the frozen base weight in NF4 or in the blocks of a GGUF, or None.
        bias: frozen base bias, shape (O,), or None.
        lora_A: shape (R, I), fp32, Kaiming-uniform.
        lora_B: shape (O, R), fp32, zeros.
        scale: factor on the update, ``alpha / r`` usually.
        in_fp16: the base is multiplied in fp16 with rows scaled where the input is fp32.
        group: the layers that it is computed with; itself alone at first.
        grouped: it is computed by its group.
    """

    grouped = True

    def __init__(
        self, base: nn.Linear | QuantizedLinear, r: int, scale: float, dropout: float, generator: torch.Generator | None = None
    ):
        super().__init__()
        if isinstance(base, QuantizedLinear):
            self.quantized, self.weight = base.weight, None
        else:
            self.quantized, self.weight = None, nn.Parameter(base.weight.data, requires_grad=False)
        self.in_fp16 = isinstance(base, HalfQuantizedLinear) or (self.quantized is None and base.weight.dtype == torch.float16)
        bias = base.bias
        self.bias = nn.Parameter(bias.data, requires_grad=False) if isinstance(bias, Tensor) else None
        self.out_features, self.in_features = base.weight.shape
        device = base.weight.device
        drawn_RI = torch.empty(r, self.in_features, dtype=torch.float32)  # on the CPU: the same numbers for every device
        if r:
            nn.init.kaiming_uniform_(drawn_RI, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(upload(drawn_RI, device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r, dtype=torch.float32, device=device))
        self.scale = scale
        self.dropout = dropout
        self.group = LoRAGroup([self])

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O), in the dtype of x."""
        assert len(self.group.layers) == 1, "this layer is computed by its group"
        y_TO = self.group(x.reshape(-1, x.shape[-1]))
        return y_TO.view(*x.shape[:-1], y_TO.shape[-1])  # of no rows, too

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

    @torch.no_grad()
    def merged_OI(self) -> Tensor:
        """The weight with its update, shape (O, I), fp32."""
        dtype = torch.float32 if self.weight is None or self.in_fp16 else self.weight.dtype
        return self.base_OI(dtype).float() + self.delta_OI()


def join(layers: Sequence[LoRALinear]) -> "LoRAGroup":
    """The group of layers that read the same input, of the kind of the one among them that needs a kind of its own."""
    kinds = {type(layer.group) for layer in layers} - {LoRAGroup}
    return (kinds.pop() if kinds else LoRAGroup)(layers)


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
        self._quantized = any(layer.quantized is not None for layer in layers)
        self._augmented_weight: Tensor | None = None  # (M, Z)
        for layer in layers:
            layer.group = self

    def __call__(self, x_TI: Tensor, norm: Norm | None = None) -> Tensor:
        """Outputs of all layers side by side, shape (T, M), of ``norm(x)`` where a norm is given."""
        if x_TI.is_cuda and x_TI.stride(-1) != 1:
            x_TI = x_TI.contiguous()
        if self.answers(x_TI):
            return self.answer(x_TI if norm is None else rms_norm_forward(x_TI, norm.weight_I, norm.eps, norm.offset)[0])
        parameters = [p for layer in self.layers for p in (layer.lora_A, layer.lora_B)]
        dropout = max(layer.dropout for layer in self.layers) if self.layers[0].training else 0.0
        seed = self.layers[0].dropout_seed() if dropout else 0
        return _GroupFunction.apply(x_TI, self, norm, dropout, seed, *parameters)  # type: ignore[return-value]

    def answers(self, x_TI: Tensor) -> bool:
        """Whether ``answer`` computes this: a few rows on a GPU, a quantised weight, and nothing to remember."""
        half = self._in_fp16 and x_TI.dtype == torch.float32
        if not x_TI.is_cuda or len(x_TI) > FEW_TOKENS or half or torch.is_grad_enabled():
            return False
        return all(isinstance(layer.quantized, NF4Weight) and not layer.training for layer in self.layers)

    def answer(self, x_TI: Tensor) -> Tensor:
        """Outputs (T, M) of a few rows, each weight unpacked inside its product; nothing is kept for a backward pass."""
        x_TI = x_TI.contiguous()
        y_TM = x_TI.new_empty(len(x_TI), sum(self.widths))
        xA_TS = x_TI @ self.A_SI(x_TI.dtype).T if sum(self._ranks) else None
        for layer, columns, ranks in self._slices():
            assert isinstance(layer.quantized, NF4Weight)
            update = None if xA_TS is None else Update(xA_TS[:, ranks], layer.lora_B.detach(), layer.scale)
            nf4_matmul(x_TI, layer.quantized.q, update, layer.bias, out=y_TM[:, columns])
        return y_TM

    def A_SI(self, dtype: torch.dtype) -> Tensor:
        """All A under each other, and zeros up to the columns of ``augmented_input``."""

        first = self.layers[0]
        if first.context is not None and first.lora_A.is_cuda:
            cache = first.context.cache
            together = cache.get(dtype, "A", None, lambda: _cast_together(cache.layers, dtype)).get(self)
            if together is not None:
                return together
        parts = [layer.lora_A.detach() for layer in self.layers]
        if spare := self._columns(dtype) - sum(self._ranks):
            parts.append(parts[0].new_zeros(spare, parts[0].shape[1]))
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(dtype)

    def augmented_input(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """An empty ``[x | x A^T]`` of shape (T, Z), and the view of its first I columns.

        Args:
            like: a tensor of T rows on the same device, whose dtype is taken.
        """
        inputs = self.layers[0].in_features
        x_TZ = like.new_empty(like.shape[0], inputs + self._columns(like.dtype))
        return x_TZ, x_TZ[:, :inputs]

    def outputs(
        self, x_TI: Tensor, x_TZ: Tensor, mask: Mask | None, keep: float, is_read: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Outputs (T, M), and ``x A^T`` (T, S) for the backward pass.

        Args:
            x_TI: the input before dropout; it may be the view of ``augmented_input``.
            x_TZ: ``augmented_input``, to be written.
            mask: what dropout leaves; None for no dropout.
            keep: share of elements that dropout leaves.
            is_read: whether anybody looks at the outputs; else they are whatever was in memory.
        """
        A_SI = self.A_SI(x_TI.dtype)
        if x_TI.is_cuda:
            xA_TS = on_gpu.project(x_TI, A_SI, x_TZ, _seeded(mask))
        else:
            if x_TI.data_ptr() != x_TZ.data_ptr():
                x_TZ[:, : x_TI.shape[1]] = x_TI
            xA_TS = drop(x_TI, mask) @ A_SI.T
            x_TZ[:, x_TI.shape[1] :] = xA_TS
        return self.multiply(x_TZ, keep) if is_read else x_TZ.new_empty(len(x_TZ), sum(self.widths)), xA_TS

    def input_gradients(self, dy_TM: Tensor, mask: Mask | None, keep: float) -> tuple[Tensor, Tensor]:
        """Gradients of x (T, I), before dropout, and of ``x A^T`` (T, S), both views of one tensor."""
        d_TZ, A_SI = self.grad_augmented_input(dy_TM, keep), self.A_SI(dy_TM.dtype)
        dx_TI, dxA_TS = d_TZ.split((A_SI.shape[1], A_SI.shape[0]), 1)
        if mask is None:
            dx_TI.addmm_(dxA_TS, A_SI)
        elif dx_TI.is_cuda:
            on_gpu.add_update_(dx_TI, dxA_TS, A_SI, _seeded(mask))
        else:
            add_dropped_(dx_TI, dxA_TS @ A_SI, mask)
        return dx_TI, dxA_TS

    def multiply(self, x_TZ: Tensor, keep: float) -> Tensor:
        """Outputs (T, M) from ``[x | x A^T]``; ``keep`` is the share of elements that dropout leaves."""
        if self._in_half(x_TZ.dtype):
            return self._multiply_half(x_TZ, keep)
        if self._side_by_side(x_TZ.dtype):
            return torch.nn.functional.linear(x_TZ, self._augmented(x_TZ.dtype, keep), self._bias_M())
        inputs = self.layers[0].in_features
        y_TM = x_TZ.new_empty(x_TZ.shape[0], sum(self.widths))
        for layer, columns, ranks in self._slices():
            B_OR = layer.lora_B.detach().to(x_TZ.dtype)
            weight_OI = layer.base_OI(x_TZ.dtype)
            xA_TR = x_TZ[:, inputs:][:, ranks]
            x_TI, y_TO = x_TZ[:, :inputs], y_TM[:, columns]
            lora_matmul(x_TI, weight_OI, xA_TR, B_OR, layer.scale / keep, layer.bias, out=y_TO)
        return y_TM

    def _multiply_half(self, x_TZ: Tensor, keep: float) -> Tensor:
        """``multiply`` of an fp32 input with an fp16 base; the rows are scaled once for all layers."""
        inputs = self.layers[0].in_features
        rows, y_TM = scale_rows(x_TZ[:, :inputs], self.layers[0].overflow), x_TZ.new_empty(x_TZ.shape[0], sum(self.widths))
        for layer, columns, ranks in self._slices():
            y_TO = rows.mm(layer.base_OI(torch.float16).T, out=y_TM[:, columns])
            y_TO.addmm_(x_TZ[:, inputs:][:, ranks], layer.lora_B.detach().T, alpha=layer.scale / keep)
            if layer.bias is not None:
                y_TO.add_(layer.bias)
        return y_TM

    def grad_augmented_input(self, dy_TM: Tensor, keep: float) -> Tensor:
        """Gradients (T, Z) of ``[x | x A^T]`` from those of the outputs."""
        half = self._in_half(dy_TM.dtype)
        if self._side_by_side(dy_TM.dtype):
            return dy_TM @ self._augmented(dy_TM.dtype, keep)
        d_TZ, d_TI = self.augmented_input(dy_TM)
        for number, (layer, columns, ranks) in enumerate(self._slices()):
            dy_TO = dy_TM[:, columns]
            weight_OI = layer.base_OI(torch.float16 if half else dy_TM.dtype)
            if half:
                # Layers have gradients of different sizes, so each has its own scale.
                part_TI = scaled_mm_back(dy_TO, weight_OI, out=None if number else d_TI, overflow=layer.overflow)
                if number:
                    d_TI.add_(part_TI)
            elif number:
                d_TI.addmm_(dy_TO, weight_OI)
            else:
                torch.mm(dy_TO, weight_OI, out=d_TI)
            d_TZ[:, d_TI.shape[1] :][:, ranks] = (dy_TO @ layer.lora_B.detach().to(dy_TM.dtype)).mul_(layer.scale / keep)
        return d_TZ

    def grad_xA(self, dy_TM: Tensor, keep: float) -> Tensor:
        """Gradients (T, S) of ``x A^T`` alone, where nobody asks for those of x."""
        parts = [
            (dy_TM[:, columns] @ layer.lora_B.detach().to(dy_TM.dtype)).mul_(layer.scale / keep)
            for layer, columns, _ in self._slices()
        ]
        return torch.cat(parts, 1)

    def adapter_gradients(
        self,
        dy_TM: Tensor,
        x_TI: Tensor,
        xA_TS: Tensor,
        dxA_TS: Tensor,
        mask: Mask | None,
        keep: float,
        norm: tuple[Norm, Tensor] | None = None,
    ) -> list[Tensor]:
        """Gradients of lora_A and lora_B of each layer in turn, fp32 (or fp64).

        Args:
            dy_TM: gradients of the outputs.
            x_TI: the input before dropout, and before the norm where one is given.
            xA_TS: as ``outputs`` returned it.
            dxA_TS: as ``input_gradients`` returned it.
            mask: what dropout leaves.
            keep: share of elements that dropout leaves.
            norm: what x still has to go through, and ``1 / rms`` of its rows.
        """
        dtype = self.layers[0].lora_A.dtype
        if dy_TM.is_cuda:
            factors = [(width, r, x.scale / keep) for x, width, r in zip(self.layers, self.widths, self._ranks, strict=True)]
            parts = None if norm is None else (norm[0].weight_I, norm[1], norm[0].offset)
            dA_SI, dB = on_gpu.adapter_gradients(dy_TM, x_TI, xA_TS, dxA_TS, factors, dtype, _seeded(mask), parts)
            return [grad for n, (_, _, ranks) in enumerate(self._slices()) for grad in (dA_SI[ranks], dB[n])]
        if norm is not None:
            x_TI, _ = rms_norm_forward(x_TI, norm[0].weight_I, norm[0].eps, norm[0].offset)
        dA_SI = (dxA_TS.T @ drop(x_TI, mask)).to(dtype)
        grads_adapter: list[Tensor] = []
        for layer, columns, ranks in self._slices():
            grads_adapter.append(dA_SI[ranks])
            dB_OR = (dy_TM[:, columns].T @ xA_TS[:, ranks]).to(dtype)
            grads_adapter.append(dB_OR.mul_(layer.scale / keep))
        return grads_adapter

    def _in_half(self, dtype: torch.dtype) -> bool:
        """Whether rows are scaled for products in fp16."""
        return self._in_fp16 and dtype == torch.float32

    def _side_by_side(self, dtype: torch.dtype) -> bool:
        """Whether the weights of all layers stand in one tensor in a product of this dtype."""
        return (not self._quantized or self.layers[0].lora_A.is_cuda) and not self._in_half(dtype)

    def _columns(self, dtype: torch.dtype) -> int:
        """How many stand beside x in ``augmented_input``: one a rank, and on a GPU what aligns the rows."""
        ranks, first = sum(self._ranks), self.layers[0]
        return ranks + (-(first.in_features + ranks) % ALIGNED if first.lora_A.is_cuda and not self._in_half(dtype) else 0)

    def _once_a_step(self, name: str, variant: object, make: Callable[[], Tensor]) -> Tensor:
        """What a step makes of the adapters in one form; on a CPU, which has no launches to save, no memory is kept for it."""
        first = self.layers[0]
        if first.context is None or not first.lora_A.is_cuda:
            return make()
        return first.context.cache.get(self, name, variant, make)

    def _slices(self) -> list[tuple[LoRALinear, slice, slice]]:
        """Each layer with its columns of the outputs and of the rank-r products."""
        slices, column, rank = [], 0, 0
        for layer, width, r in zip(self.layers, self.widths, self._ranks, strict=True):
            slices.append((layer, slice(column, column + width), slice(rank, rank + r)))
            column, rank = column + width, rank + r
        return slices

    def _augmented(self, dtype: torch.dtype, keep: float) -> Tensor:
        """``[W | scale B]`` of all layers, shape (M, Z): B stands in its layer's rows and columns, zeros elsewhere.

        Of quantised layers valid until the next call on any layer.
        """
        inputs, device = self.layers[0].in_features, self.layers[0].lora_A.device
        shape = (sum(self.widths), inputs + self._columns(dtype))
        if not self._quantized:
            weight_MZ = self._own_augmented(shape, dtype)
            self._once_a_step("B", keep, lambda: self._fill_columns(weight_MZ, keep))
            return weight_MZ
        weight_MZ = DENSE.first(device, dtype, math.prod(shape)).view(shape)
        for layer, rows, _ in self._slices():
            if layer.quantized is None:
                weight_MZ[rows, :inputs] = layer.base_OI(dtype)
            elif isinstance(layer.quantized, BlockWeight):
                layer.quantized.dense(dtype, out=weight_MZ[rows, :inputs])
        return fill_augmented_(weight_MZ, inputs, self._parts(keep))

    def _parts(self, keep: float) -> list[Part]:
        quantized = [layer.quantized.q if isinstance(layer.quantized, NF4Weight) else None for layer in self.layers]
        return [Part(q, x.lora_B.detach(), x.scale / keep) for q, x in zip(quantized, self.layers, strict=True)]

    def _own_augmented(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The tensor that the frozen weights are views of, shape (M, Z)."""
        if self._augmented_weight is None:
            first = self.layers[0].base_OI(dtype)
            self._augmented_weight = torch.zeros(shape, dtype=first.dtype, device=first.device)
            for layer, rows, _ in self._slices():
                view_OI = self._augmented_weight[rows, : first.shape[1]]
                view_OI.copy_(layer.base_OI(dtype))
                assert layer.weight is not None
                layer.weight.data = view_OI
        return self._augmented_weight

    def _fill_columns(self, weight_MZ: Tensor, keep: float) -> Tensor:
        """Every ``scale B`` into its rows and columns, beside weights that stand there; between them are zeros."""
        inputs = self.layers[0].in_features
        if weight_MZ.is_cuda:
            return fill_augmented_(weight_MZ, inputs, self._parts(keep))
        for layer, rows, ranks in self._slices():
            torch.mul(layer.lora_B.detach(), layer.scale / keep, out=weight_MZ[:, inputs:][rows, ranks])
        return weight_MZ

    def _bias_M(self) -> Tensor | None:
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        if not biases:
            return None
        return torch.cat(
            [biases[0].new_zeros(n) if x.bias is None else x.bias for x, n in zip(self.layers, self.widths, strict=True)]
        )


def _cast_together(layers: Sequence[nn.Module], dtype: torch.dtype) -> dict[LoRAGroup, Tensor]:
    """``A_SI`` of every group of a step, cast and put side by side in one launch; what a group fills up is zero."""
    groups = dict.fromkeys(layer.group for layer in layers if isinstance(layer, LoRALinear) and layer.grouped)
    shapes = [(group._columns(dtype), group.layers[0].in_features) for group in groups]
    run = torch.empty(sum(map(math.prod, shapes)), dtype=dtype, device=next(iter(groups)).layers[0].lora_A.device)
    casts = {
        group: part.view(shape) for group, part, shape in zip(groups, run.split([*map(math.prod, shapes)]), shapes, strict=True)
    }
    rows = [(A_SI[ranks], x.lora_A.detach()) for group, A_SI in casts.items() for x, _, ranks in group._slices()]
    spares = [A_SI[sum(group._ranks) :] for group, A_SI in casts.items()]
    if filled := [spare for spare in spares if spare.numel()]:
        torch._foreach_zero_(filled)  # pyright: ignore[reportPrivateImportUsage]
    if live := [pair for pair in rows if pair[1].numel()]:
        places, factors = [place for place, _ in live], [factor for _, factor in live]
        torch._foreach_copy_(places, factors)  # pyright: ignore[reportPrivateImportUsage]
    return casts


def _seeded(mask: Mask | None) -> tuple[int, int, int]:
    """Seed, threshold and first row of a mask that is drawn where it is applied; a threshold of 0 for none."""
    if mask is None:
        return 0, 0, 0
    assert isinstance(mask, SeededMask)
    return mask.seed, mask.threshold, mask.first_row


class _GroupFunction(torch.autograd.Function):
    """All layers of a group, and the norm before them, as one step of the graph; the frozen weights stay outside it."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, group: LoRAGroup, norm: Norm | None, dropout: float, seed: int, *_: Tensor) -> Tensor:
        rstd_T, normed_TI = None, x_TI
        x_TZ, input_TI = group.augmented_input(x_TI)
        if norm is not None:
            out = input_TI if x_TI.is_cuda else None  # on a CPU products read rows that lie side by side
            normed_TI, rstd_T = rms_norm_forward(x_TI, norm.weight_I, norm.eps, norm.offset, out)
        mask = draw_mask(normed_TI, dropout, seed) if dropout else None
        y_TM, xA_TS = group.outputs(normed_TI, x_TZ, mask, 1.0 - dropout)
        ctx.save_for_backward(x_TI, rstd_T, xA_TS)
        ctx.group, ctx.norm, ctx.dropout, ctx.seed = group, norm, dropout, seed
        return y_TM

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, rstd_T, xA_TS = ctx.saved_tensors
        group, norm, keep, dy_TM = ctx.group, ctx.norm, 1.0 - ctx.dropout, grads[0]
        if dy_TM.is_cuda and dy_TM.stride(1) != 1:  # that of a sum comes expanded
            dy_TM = dy_TM.contiguous()
        mask = draw_mask(x_TI, ctx.dropout, ctx.seed) if ctx.dropout else None
        dx_TI: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx_TI, dxA_TS = group.input_gradients(dy_TM, mask, keep)
        else:
            dxA_TS = group.grad_xA(dy_TM, keep)
        before = None if norm is None else (norm, rstd_T)
        grads_adapter = group.adapter_gradients(dy_TM, x_TI, xA_TS, dxA_TS, mask, keep, before)
        if dx_TI is not None and norm is not None:
            dx_TI = rms_norm_backward(dx_TI, x_TI, norm.weight_I, rstd_T, norm.offset)
        return dx_TI, None, None, None, None, *grads_adapter
