"""All experts of a layer in some fifty launches: products grouped by expert, where a GPU has them.

One expert after another is 40 small operations an expert, forward and back: 10,000 launches a layer with 128 experts, and the
host has to know how many tokens each of them got. PyTorch's grouped product takes rows sorted by expert and reads on the
device where each expert ends, so nobody waits and every projection is one launch each way.

It wants the weights of all experts at once. A layer's are dequantised into a buffer that all layers share (0.8 GB for 128
experts of 2,048 by 768), and every expert is read, so it pays where most have tokens: ``fits`` asks for a pair of token and
expert an expert. Fewer take ``layers/experts.py``'s way, which reads the experts that were chosen.

The numbers are those of that way: ``[x | x A^T] [W | scale B]^T`` is one product, rounded once, with ranks filled up by zeros
to rows of 16 elements, which is what the kernel loads. A token's experts are added up in fp32 in the order in which the router
names them, from rows that were put back in place: nothing is added by two threads at once, and two runs have the same bits.

Source: ``torch.nn.functional.grouped_mm`` (PyTorch 2.10 and later; bf16 on a GPU from compute capability 8.0 on). Its kernel
for the CPU, which tests use, asks for the same alignment.

Shape suffixes: T tokens, A experts a token, E experts, D hidden size, F features of the hidden layer, I in_features, O
out_features, R rank, Z features and ranks; here: U pairs of a token and an expert, sorted by expert.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tunesmith.layers.dense_buffer import SharedBuffer
from tunesmith.layers.gate import Gate, wide

ALIGNED = 16  # elements of a row are a multiple of it
EIGHT = 8  # 16 bytes of bf16, where every operand has to begin
_AUGMENTED = SharedBuffer()  # of ``[W | scale B]``; a transposed W is copied from the buffer of dense weights


class Projection(NamedTuple):
    """One frozen projection of all experts.

    Attributes:
        dense: makes the weight in a dtype, shape (E, O, I), or (E, I, O) where ``transposed``; valid until the next call, or
            where it is told to write.
        bias_EO: or None.
        scale: factor on the update.
        in_features, out_features: of every expert.
    """

    dense: Callable[[torch.dtype, Tensor | None], Tensor]
    bias_EO: Tensor | None
    transposed: bool
    scale: float
    in_features: int
    out_features: int


def fits(x_TD: Tensor, pairs: int, experts: int, projections: tuple[Projection, Projection]) -> bool:
    """Whether the grouped product computes this layer, and pays."""
    if not x_TD.is_cuda or x_TD.dtype != torch.bfloat16 or pairs < experts or not hasattr(functional, "grouped_mm"):
        return False
    sizes = [size for part in projections for size in (part.in_features, part.out_features)]
    return torch.cuda.get_device_capability(x_TD.device) >= (8, 0) and all(size % EIGHT == 0 for size in sizes)


class _Order(NamedTuple):
    """Pairs sorted by expert: their places of T x A, the way back, their tokens and experts, and where each expert ends."""

    place_U: Tensor
    back_U: Tensor
    token_U: Tensor
    expert_U: Tensor
    end_E: Tensor

    @classmethod
    def of(cls, index_TA: Tensor, experts: int) -> "_Order":
        """Without a word to the host."""
        expert_U, place_U = torch.sort(index_TA.reshape(-1), stable=True)
        numbers = torch.arange(len(place_U), device=place_U.device)
        back_U = torch.empty_like(place_U).index_copy_(0, place_U, numbers)
        end_E = torch.searchsorted(expert_U, torch.arange(experts, device=place_U.device), right=True, out_int32=True)
        return cls(place_U, back_U, place_U // index_TA.shape[1], expert_U, end_E)


class _Operand:
    """A projection as its products need it: ``[W | scale B]``, and A, with ranks filled up.

    Attributes:
        right_EZO: what multiplies ``[x | x A^T]`` from the right; valid until the next one is made.
        A_ERI: or None without adapters.
    """

    def __init__(self, part: Projection, A_ERI: Tensor | None, B_EOR: Tensor | None, dtype: torch.dtype):
        self.A_ERI: Tensor | None = None
        if A_ERI is None or B_EOR is None:
            weight = part.dense(dtype, None)
        else:
            (experts, rank, inputs), outputs = A_ERI.shape, part.out_features
            spare = -(inputs + rank) % ALIGNED
            self.A_ERI = (functional.pad(A_ERI, (0, 0, 0, spare)) if spare else A_ERI).to(dtype)
            columns = inputs + rank + spare
            shape = (experts, columns, outputs) if part.transposed else (experts, outputs, columns)
            weight = _AUGMENTED.first(A_ERI.device, dtype, experts * outputs * columns).view(shape)
            whole_EOZ = weight.mT if part.transposed else weight
            if part.transposed:  # an expert's block ends before the rows of its B, so experts lie apart and not rows
                weight[:, :inputs] = part.dense(dtype, None)
            else:
                part.dense(dtype, weight[..., :inputs])
            whole_EOZ[..., inputs + rank :] = 0
            torch.mul(B_EOR, part.scale, out=whole_EOZ[..., inputs : inputs + rank])
        self.right_EZO = weight if part.transposed else weight.mT


def _multiply(x_UI: Tensor, part: Projection, operand: _Operand, order: _Order) -> tuple[Tensor, Tensor | None]:
    """Outputs (U, O), and the rank-r products (U, R)."""
    xA_UR = None
    if operand.A_ERI is not None:
        xA_UR = functional.grouped_mm(x_UI, operand.A_ERI.mT, offs=order.end_E)
        x_UI = torch.cat([x_UI, xA_UR], 1)
    y_UO = functional.grouped_mm(x_UI, operand.right_EZO, offs=order.end_E)
    return y_UO if part.bias_EO is None else y_UO.add_(part.bias_EO.to(y_UO.dtype)[order.expert_U]), xA_UR


def _multiply_back(dy_UO: Tensor, operand: _Operand, order: _Order) -> tuple[Tensor, Tensor | None]:
    """Gradients of the input (U, I) and of its rank-r products (U, R)."""
    d_UZ = functional.grouped_mm(dy_UO, operand.right_EZO.mT, offs=order.end_E)
    if operand.A_ERI is None:
        return d_UZ, None
    dx_UI, dxA_UR = d_UZ.split((operand.A_ERI.shape[2], operand.A_ERI.shape[1]), 1)
    return dx_UI + functional.grouped_mm(dxA_UR, operand.A_ERI, offs=order.end_E), dxA_UR


def _factor(left_UO: Tensor, right_UI: Tensor, order: _Order) -> Tensor:
    """``left^T right`` of every expert, shape (E, O, I)."""
    return functional.grouped_mm(left_UO.mT, right_UI, offs=order.end_E)


def _gather(y_UD: Tensor, order: _Order, shape_TA: torch.Size, weights_TA: Tensor | None) -> Tensor:
    """The (weighted) sum of each token's rows, shape (T, D), in the dtype of y; added up in fp32."""
    y_TAD = wide(y_UD[order.back_U].unflatten(0, shape_TA))
    if weights_TA is not None:
        y_TAD = y_TAD.mul_(weights_TA[..., None]) if y_TAD.dtype != y_UD.dtype else y_TAD * weights_TA[..., None]
    return y_TAD.sum(1).to(y_UD.dtype)


def _rounded(x: Tensor, weight_U1: Tensor) -> Tensor:
    """Rows times their routing weights, which are fp32, rounded once."""
    return torch.mul(x, weight_U1, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))


class GroupedExperts(torch.autograd.Function):
    """All experts of a layer as one step of the graph; it saves what one expert after another saves."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TA: Tensor,
        index_TA: Tensor,
        gate: Gate,
        gate_up: Projection,
        down: Projection,
        experts: int,
        *adapters: Tensor,
    ) -> Tensor:
        """Shape (T, D) to (T, D)."""
        order, A = _Order.of(index_TA, experts), (*adapters, None, None, None, None)
        gate_up_U2F, xA_UR = _multiply(x_TD[order.token_U], gate_up, _Operand(gate_up, A[0], A[1], x_TD.dtype), order)
        h_UF = gate.forward(gate_up_U2F)
        y_UD, hA_UR = _multiply(h_UF, down, _Operand(down, A[2], A[3], x_TD.dtype), order)
        ctx.save_for_backward(x_TD, weights_TA, *order, gate_up_U2F, xA_UR, hA_UR, *adapters)
        ctx.gate, ctx.gate_up, ctx.down = gate, gate_up, down
        return _gather(y_UD, order, index_TA.shape, wide(weights_TA))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the input, of the routing weights and of the adapters."""
        x_TD, weights_TA, *rest = ctx.saved_tensors
        order, (gate_up_U2F, xA_UR, hA_UR, *adapters) = _Order(*rest[:5]), rest[5:]
        gate, gate_up, down, A = ctx.gate, ctx.gate_up, ctx.down, (*adapters, None, None, None, None)
        wants_x, wants_weights = ctx.needs_input_grad[:2]
        weight_U1 = wide(weights_TA).reshape(-1)[order.place_U, None]
        dout_UD = grads[0][order.token_U]
        dh_UF, dhA_UR = _multiply_back(dout_UD, _Operand(down, A[2], A[3], x_TD.dtype), order)  # before the routing weight
        h_UF, d_U2F = gate.backward(_rounded(dh_UF, weight_U1), gate_up_U2F)
        dweights_TA = None
        if wants_weights:
            dweight_U = (wide(dh_UF) * wide(h_UF)).sum(1)
            if down.bias_EO is not None:
                dweight_U += (wide(dout_UD) * wide(down.bias_EO)[order.expert_U]).sum(1)
            dweights_TA = dweight_U[order.back_U].to(weights_TA.dtype).view(weights_TA.shape)
        d_adapter: list[Tensor] = []
        dx_TD = None
        if wants_x or adapters:
            dx_UD, dxA_UR = _multiply_back(d_U2F, _Operand(gate_up, A[0], A[1], x_TD.dtype), order)
            dx_TD = _gather(dx_UD, order, weights_TA.shape, None) if wants_x else None
            if dxA_UR is not None and dhA_UR is not None:
                d_adapter = [
                    _factor(dxA_UR, x_TD[order.token_U], order),
                    _factor(d_U2F, xA_UR, order),
                    _factor(_rounded(dhA_UR, weight_U1), h_UF, order),
                    _factor(_rounded(dout_UD, weight_U1), hA_UR, order),
                ]
        scales = (1.0, gate_up.scale, 1.0, down.scale)
        narrow = [
            d[tuple(slice(n) for n in adapter.shape)].to(adapter.dtype) for d, adapter in zip(d_adapter, adapters, strict=False)
        ]
        scaled = [d if scale == 1.0 else d * scale for d, scale in zip(narrow, scales, strict=False)]
        return dx_TD, dweights_TA, None, None, None, None, None, *scaled
