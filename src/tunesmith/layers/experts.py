"""The experts of a mixture: frozen, in 16 bits or in NF4, and with a low-rank adapter an expert.

A mixture-of-experts layer sends each token to A of E small gated MLPs and adds up their outputs, weighted by its router
(Shazeer et al. 2017, arXiv 1701.06538). Their weights lie in two tensors of three dimensions, and they are most of the
model: 22.8 of 26 billion weights in one of today's. So they are what has to be quantised and what has to be adapted: adapters
on the linear layers alone leave 90 % of the weights as they are.

**Tokens are sorted by expert once**, and every expert with tokens is one small MLP over its rows. An expert without tokens is
not looked at: neither its weight nor its adapter is read, dequantised or cast. Outputs are added up in fp32 in the order
of the experts, so that the result is the same on every run, and rounded once.

**The update is not rounded away**: each product is ``[x | x A^T] [W | scale B]^T``, added in fp32 (``kernels/lora.py``). Of an
update of 0.07 % of the output 97 % arrives so in bf16, and 19 to 29 % if the weight's update is added to the weight.

**On a GPU with many tokens** all experts are a handful of grouped products (``layers/grouped_experts.py``). Here an expert is
forty small operations, and the host waits once, in the forward pass, for how many tokens each of them got.

**One autograd function.** It saves the input, the routing, the outputs of gate and up and the rank-r products. The activated
product is made again. The gradient of a routing weight is ``<dout, y>``, where y is the expert's output, A times as large
as the hidden states; it is taken as ``<W^T dout, h>`` instead, which the backward pass has at hand, so y is not saved.
Frozen weights stay outside of the graph. Refused: PEFT's way, which adds ``B A`` to the whole weight in every forward pass (all
experts, rounded to the weight's grid).

Dropout is not applied here: PEFT has none for such weights, because it adapts the weight and never sees the input.

Sources: the ``*Experts`` modules of transformers 5.23 and ``integrations/moe.py``; ``ParamWrapper`` in
``peft/tuners/lora/layer.py``.

Shape suffixes: T tokens, A experts a token, N rows (of one expert), E experts, D hidden size, F features of the hidden
layer, I in_features, O out_features, R rank; here: U pairs of a token and an expert.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.errors import ModelError
from tunesmith.kernels.fp16_scaled_mm import scaled_mm, scaled_mm_back
from tunesmith.kernels.lora import lora_matmul
from tunesmith.kernels.upload import upload
from tunesmith.layers.context import InStep
from tunesmith.layers.gate import Gate, wide
from tunesmith.layers.grouped_experts import GroupedExperts, Projection, fits
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.new_rows import NewRows
from tunesmith.layers.nf4 import NF4Weight

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
PROJECTIONS = ("gate_up_proj", "down_proj")


def _times(x: Tensor, weight_N1: Tensor) -> Tensor:
    """Rows times their routing weights, which are fp32, rounded once to the dtype of x."""
    return torch.mul(x, weight_N1, out=torch.empty_like(x))


class ExpertWeight(InStep, nn.Module):
    """The frozen weight of one projection of all experts.

    Args:
        weight: shape (E, O, I), or (E, I, O) where ``transposed``; NF4, or dense.
        bias_EO: frozen, shape (E, O), or None.
        transposed: the experts multiply from the left: ``y = x W``.

    Attributes:
        weight: as given, dense; None where it is quantised.
        quantized: as given, NF4; or None.
        in_fp16: multiplied in fp16 with rows scaled where the input is fp32 (``kernels/fp16_scaled_mm.py``).
    """

    def __init__(self, weight: Tensor | NF4Weight, bias_EO: Tensor | None, transposed: bool):
        super().__init__()
        self.quantized = weight if isinstance(weight, NF4Weight) else None
        self.weight = nn.Parameter(weight.data, requires_grad=False) if isinstance(weight, Tensor) else None
        self.bias = None if bias_EO is None else nn.Parameter(bias_EO.data, requires_grad=False)
        self.in_fp16 = self.weight is not None and self.weight.dtype == torch.float16
        self.transposed = transposed
        self.shape = tuple(weight.shape)
        self.experts, first, second = self.shape
        self.out_features, self.in_features = (second, first) if transposed else (first, second)

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        if self.quantized is not None:
            return self.quantized.device
        assert self.weight is not None
        return self.weight.device

    def base_OI(self, expert: int, dtype: torch.dtype) -> Tensor:
        """The weight of one expert, shape (O, I), to be read; of a quantised one valid until the next call."""
        if self.quantized is not None:
            matrix = self.quantized.expert(expert, dtype)
        else:
            assert self.weight is not None
            matrix = self.weight[expert]
        if not self.transposed:
            return matrix
        return matrix.T.contiguous() if matrix.is_cuda else matrix.T  # the GPU's kernel reads rows

    def bias_O(self, expert: int, dtype: torch.dtype) -> Tensor | None:
        """The bias of one expert, or None."""
        return None if self.bias is None else self.bias[expert].to(dtype)

    def grouped(self) -> Projection:
        """All experts at once."""
        scale = self.scale if isinstance(self, LoRAExpertWeight) else 1.0
        return Projection(self._dense, self.bias, self.transposed, scale, self.in_features, self.out_features)

    def _dense(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        if self.quantized is not None:
            return self.quantized.dense(dtype, out)
        assert self.weight is not None
        return self.weight if out is None else out.copy_(self.weight)

    def merged_OI(self, expert: int) -> Tensor:
        """The weight of one expert with whatever was trained on it, shape (O, I), fp32, in memory of its own."""
        return self.base_OI(expert, torch.float32).to(torch.float32, copy=True)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"experts={self.experts}, in_features={self.in_features}, out_features={self.out_features}"


class LoRAExpertWeight(ExpertWeight):
    """The frozen weight of one projection, and the trained adapter of every expert.

    Attributes:
        lora_A: shape (E, R, I), fp32, Kaiming-uniform as PEFT draws them.
        lora_B: shape (E, O, R), fp32, zeros.
        scale: factor on the update.
    """

    def __init__(self, base: ExpertWeight, r: int, scale: float, generator: torch.Generator | None = None):
        weight = base.weight if base.quantized is None else base.quantized
        assert weight is not None
        super().__init__(weight, base.bias, base.transposed)
        self.in_fp16 = base.in_fp16
        drawn = torch.empty(self.experts * r, self.in_features, dtype=torch.float32)  # on the CPU, as every adapter
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(upload(drawn.view(self.experts, r, self.in_features), base.device))
        self.lora_B = nn.Parameter(torch.zeros(self.experts, self.out_features, r, dtype=torch.float32, device=base.device))
        self.scale = scale

    @torch.no_grad()
    def merged_OI(self, expert: int) -> Tensor:
        """``W + scale * B A`` of one expert, shape (O, I), fp32."""
        return super().merged_OI(expert).addmm_(self.lora_B[expert], self.lora_A[expert], alpha=self.scale)


Adapted = LoRALinear | LoRAExpertWeight | NewRows
"""Whatever holds a ``lora_A`` and a ``lora_B``."""


class _Experts(nn.Module):
    """What the two kinds have in common: the stock forward signature over two projections and a gate."""

    gate_up_proj: ExpertWeight
    down_proj: ExpertWeight

    def __init__(self, gate: Gate, kind: type[nn.Module], config: Any):
        super().__init__()
        self.gate = gate
        self._kind, self._config = kind, config

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden_states: shape (T, D).
            top_k_index: chosen experts, int64, shape (T, A); those of a token differ.
            top_k_weights: shape (T, A), any float dtype.

        Returns:
            Shape (T, D), in the dtype of ``hidden_states``.
        """
        projections = (self.gate_up_proj, self.down_proj)
        adapters = [p for part in projections if isinstance(part, LoRAExpertWeight) for p in (part.lora_A, part.lora_B)]
        grouped, experts = (self.gate_up_proj.grouped(), self.down_proj.grouped()), self.gate_up_proj.experts
        if fits(hidden_states, top_k_index.numel(), experts, grouped):
            return GroupedExperts.apply(hidden_states, top_k_weights, top_k_index, self.gate, *grouped, experts, *adapters)  # type: ignore[return-value]
        return _ExpertsFunction.apply(hidden_states, top_k_weights, top_k_index, self.gate, *projections, *adapters)  # type: ignore[return-value]

    @torch.no_grad()
    def stock(self) -> nn.Module:
        """The stock module with dense weights, adapters merged: in the base dtype, or in fp32 where the base is quantised."""
        with torch.device("meta"):
            plain = self._kind(self._config)
        for name, part in ((PROJECTIONS[0], self.gate_up_proj), (PROJECTIONS[1], self.down_proj)):
            dtype = torch.float32 if part.weight is None else part.weight.dtype
            merged = torch.empty(part.shape, dtype=dtype, device=part.device)
            for expert in range(part.experts):  # one in fp32 at a time
                dense_OI = part.merged_OI(expert)
                merged[expert] = dense_OI.T if part.transposed else dense_OI
            plain.register_parameter(name, nn.Parameter(merged, requires_grad=False))
            if part.bias is not None:
                plain.register_parameter(f"{name}_bias", part.bias)
        return plain.train(self.training)


class NF4Experts(_Experts):
    """Frozen experts in NF4, in the place of a stock experts module.

    Args:
        stock_module: the module it replaces; activation, layout and biases are taken from it, its weights may be on the meta
            device.
        gate_up: shape of its ``gate_up_proj``.
        down: shape of its ``down_proj``.

    Raises:
        ModelError: experts of another kind.
    """

    def __init__(self, stock_module: nn.Module, gate_up: NF4Weight, down: NF4Weight):
        super().__init__(*_facts(stock_module))
        shapes = tuple(tuple(stock_module.get_parameter(name).shape) for name in PROJECTIONS)
        assert shapes == (tuple(gate_up.shape), tuple(down.shape)), (shapes, gate_up.shape, down.shape)
        self.gate_up_proj, self.down_proj = _weights(stock_module, gate_up, down)


class LoRAExperts(_Experts):
    """Frozen experts with an adapter each, on both products.

    Args:
        base: a stock experts module, whose weight tensors are shared, or ``NF4Experts``.
        r: rank of every adapter.
        scale: factor on every update.
        generator: of the initial values.

    Attributes:
        gate_up_proj: weight and adapters of the first product.
        down_proj: of the second.

    Raises:
        ModelError: experts of another kind.
    """

    def __init__(self, base: nn.Module, r: int, scale: float, generator: torch.Generator | None = None):
        if isinstance(base, _Experts):
            super().__init__(base.gate, base._kind, base._config)
            parts = (base.gate_up_proj, base.down_proj)
        else:
            super().__init__(*_facts(base))
            parts = _weights(base, *(base.get_parameter(name) for name in PROJECTIONS))
        self.gate_up_proj, self.down_proj = (LoRAExpertWeight(part, r, scale, generator) for part in parts)
        self.train(base.training)

    def adapters(self) -> dict[str, LoRAExpertWeight]:
        """Both projections by name."""
        parts = zip(PROJECTIONS, (self.gate_up_proj, self.down_proj), strict=True)
        return {name: part for name, part in parts if isinstance(part, LoRAExpertWeight)}


def _facts(stock: Any) -> tuple[Gate, type[nn.Module], Any]:
    """Gate, class and configuration of a stock experts module."""
    kind, facts = type(stock), vars(stock)
    hint = "adapt the linear layers alone: lora.target_modules with a list of names"
    lacking = {"config", "is_transposed", "is_concatenated", "has_gate", "has_post_expert_norm"} - facts.keys()
    if lacking or not stock.has_gate or stock.has_post_expert_norm:
        raise ModelError(f"{kind.__name__}: experts of this kind are not known (no two gated products)", hint)
    if {"alpha", "limit"} <= facts.keys():
        return Gate("clamped", not stock.is_concatenated, stock.alpha, stock.limit), kind, stock.config
    config = stock.config.to_dict()
    name = config.get("hidden_activation") or config.get("hidden_act")
    if name not in ACTIVATIONS:
        raise ModelError(f"{kind.__name__}: activation {name!r}, expected one of {', '.join(ACTIVATIONS)}", hint)
    return Gate(ACTIVATIONS[name], not stock.is_concatenated), kind, stock.config


def _weights(stock: Any, gate_up: Tensor | NF4Weight, down: Tensor | NF4Weight) -> tuple[ExpertWeight, ExpertWeight]:
    biases = (stock.gate_up_proj_bias, stock.down_proj_bias) if stock.has_bias else (None, None)
    return ExpertWeight(gate_up, biases[0], stock.is_transposed), ExpertWeight(down, biases[1], stock.is_transposed)


class _Run(NamedTuple):
    """The rows of one expert: its number, where they lie among the sorted pairs, their tokens and their places of T x A."""

    expert: int
    rows: slice
    token_N: Tensor
    place_N: Tensor


def _runs(index_TA: Tensor, experts: int) -> list[_Run]:
    """Token-expert pairs sorted by expert, by token within; experts without tokens are left out."""
    flat = index_TA.reshape(-1)
    order = torch.sort(flat, stable=True).indices
    counts = torch.bincount(flat, minlength=experts).tolist()
    assert len(counts) == experts, f"expert {len(counts) - 1} of {experts} was chosen"
    token, runs, start = order // index_TA.shape[1], [], 0
    for expert, count in enumerate(counts):
        if count:
            rows = slice(start, start + count)
            runs.append(_Run(expert, rows, token[rows], order[rows]))
            start += count
    return runs


class _Adapter(NamedTuple):
    """Adapters of one projection, fp32 (or fp64)."""

    A_ERI: Tensor
    B_EOR: Tensor


def _in_half(part: ExpertWeight, x: Tensor) -> bool:
    return part.in_fp16 and x.dtype == torch.float32


def _multiply(part: ExpertWeight, adapter: _Adapter | None, expert: int, x_NI: Tensor) -> tuple[Tensor, Tensor | None]:
    """Outputs (N, O) of one expert and its rank-r products (N, R)."""
    dtype, half = x_NI.dtype, _in_half(part, x_NI)
    y_NO = scaled_mm(x_NI, part.base_OI(expert, torch.float16), overflow=part.overflow) if half else None
    if y_NO is not None and part.bias is not None:
        y_NO.add_(part.bias[expert])
    if adapter is None:
        if y_NO is None:
            y_NO = nn.functional.linear(x_NI, part.base_OI(expert, dtype), part.bias_O(expert, dtype))
        return y_NO, None
    assert isinstance(part, LoRAExpertWeight)
    xA_NR = x_NI @ adapter.A_ERI[expert].to(dtype).T
    B_OR = adapter.B_EOR[expert].to(dtype)
    if y_NO is not None:
        return y_NO.addmm_(xA_NR, B_OR.T, alpha=part.scale), xA_NR
    return lora_matmul(x_NI, part.base_OI(expert, dtype), xA_NR, B_OR, part.scale, part.bias_O(expert, dtype)), xA_NR


def _multiply_back(part: ExpertWeight, adapter: _Adapter | None, expert: int, dy_NO: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of the input (N, I) and of its rank-r products (N, R)."""
    if _in_half(part, dy_NO):
        dx_NI = scaled_mm_back(dy_NO, part.base_OI(expert, torch.float16), overflow=part.overflow)
    else:
        dx_NI = dy_NO @ part.base_OI(expert, dy_NO.dtype)
    if adapter is None:
        return dx_NI, None
    dxA_NR = _narrow_back(part, adapter, expert, dy_NO)
    return dx_NI.addmm_(dxA_NR, adapter.A_ERI[expert].to(dy_NO.dtype)), dxA_NR


def _narrow_back(part: ExpertWeight, adapter: _Adapter, expert: int, dy_NO: Tensor) -> Tensor:
    """Gradient of the rank-r products alone."""
    assert isinstance(part, LoRAExpertWeight)
    return (dy_NO @ adapter.B_EOR[expert].to(dy_NO.dtype)).mul_(part.scale)


class _ExpertsFunction(torch.autograd.Function):
    """All experts of a layer as one step of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TA: Tensor,
        index_TA: Tensor,
        gate: Gate,
        gate_up: ExpertWeight,
        down: ExpertWeight,
        *adapters: Tensor,
    ) -> Tensor:
        runs, pairs = _runs(index_TA, gate_up.experts), index_TA.numel()
        up_adapter, down_adapter = (_Adapter(*adapters[:2]), _Adapter(*adapters[2:])) if adapters else (None, None)
        out_TD = wide(x_TD.new_zeros(x_TD.shape))
        gate_up_U2F = x_TD.new_empty(pairs, gate_up.out_features)
        rank = adapters[0].shape[1] if adapters else 0
        xA_UR, hA_UR = x_TD.new_empty(pairs, rank), x_TD.new_empty(pairs, rank)
        flat_weights = wide(weights_TA.reshape(-1))
        for expert, rows, token_N, place_N in runs:
            gate_up_N2F, xA_NR = _multiply(gate_up, up_adapter, expert, x_TD[token_N])
            y_ND, hA_NR = _multiply(down, down_adapter, expert, gate.forward(gate_up_N2F))
            gate_up_U2F[rows] = gate_up_N2F
            if xA_NR is not None and hA_NR is not None:
                xA_UR[rows], hA_UR[rows] = xA_NR, hA_NR
            out_TD.index_add_(0, token_N, y_ND.to(out_TD.dtype).mul_(flat_weights[place_N, None]))
        ctx.save_for_backward(x_TD, weights_TA, gate_up_U2F, xA_UR, hA_UR, *adapters)
        ctx.runs = runs  # the host waited for them
        ctx.gate, ctx.gate_up, ctx.down = gate, gate_up, down
        return out_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_TD, weights_TA, gate_up_U2F, xA_UR, hA_UR, *adapters = ctx.saved_tensors
        gate, gate_up, down, dout_TD = ctx.gate, ctx.gate_up, ctx.down, grads[0]
        up_adapter, down_adapter = (_Adapter(*adapters[:2]), _Adapter(*adapters[2:])) if adapters else (None, None)
        wants_x, wants_weights = ctx.needs_input_grad[:2]
        dx_TD = wide(x_TD.new_zeros(x_TD.shape)) if wants_x else None
        flat_weights = wide(weights_TA.reshape(-1))
        dweights = torch.zeros_like(flat_weights)
        d_adapter = [torch.zeros_like(adapter) for adapter in adapters]
        for expert, rows, token_N, place_N in ctx.runs:
            dout_ND, weight_N1 = dout_TD[token_N], flat_weights[place_N, None]
            dh_NF, dhA_NR = _multiply_back(down, down_adapter, expert, dout_ND)  # of the output before its weight
            h_NF, d_N2F = gate.backward(_times(dh_NF, weight_N1), gate_up_U2F[rows])
            if wants_weights:
                dweights[place_N] = (wide(dh_NF) * wide(h_NF)).sum(1)
                if down.bias is not None:
                    dweights[place_N] += wide(dout_ND) @ wide(down.bias_O(expert, dout_ND.dtype))
            if dhA_NR is not None:
                d_adapter[2][expert] = _times(dhA_NR, weight_N1).T @ h_NF
                d_adapter[3][expert] = (_times(dout_ND, weight_N1).T @ hA_UR[rows]).to(d_adapter[3].dtype).mul_(down.scale)
                d_adapter[1][expert] = (d_N2F.T @ xA_UR[rows]).to(d_adapter[1].dtype).mul_(gate_up.scale)
            dxA_NR = None
            if dx_TD is not None:
                dx_ND, dxA_NR = _multiply_back(gate_up, up_adapter, expert, d_N2F)
                dx_TD.index_add_(0, token_N, dx_ND.to(dx_TD.dtype))
            elif up_adapter is not None:
                dxA_NR = _narrow_back(gate_up, up_adapter, expert, d_N2F)
            if dxA_NR is not None:
                d_adapter[0][expert] = dxA_NR.T @ x_TD[token_N]
        dx = None if dx_TD is None else dx_TD.to(x_TD.dtype)
        dweights_TA = dweights.to(weights_TA.dtype).view(weights_TA.shape) if wants_weights else None
        return dx, dweights_TA, None, None, None, None, *d_adapter
