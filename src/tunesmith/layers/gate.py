"""What stands between the two products of a gated MLP's expert: ``activation(gate) * up``, or its clamped form.

The plain forms go through ``kernels/glu.py``. The clamped one (Agarwal et al. 2025, arXiv 2508.10925, section 2.3) is written
out here: one family has it, and its cost beside the two products of an expert is small. h is made again with its gradient, so
nothing but the outputs of gate and up has to be kept for the backward pass.

Shape suffixes: N rows, F features of the hidden layer.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.kernels.glu import glu_backward, glu_forward


@dataclass(frozen=True)
class Gate:
    """What stands between the two products of an expert: ``activation(gate) * up``, or its clamped form.

    Attributes:
        activation: ``silu``, ``gelu_tanh``, or ``clamped``: ``(up' + 1) * gate' * sigmoid(alpha * gate')``, with gate' at
            most ``limit`` and up' between ``-limit`` and ``limit``.
        interleaved: gate and up take turns in the columns; else all of gate comes first.
    """

    activation: str
    interleaved: bool = False
    alpha: float = 0.0
    limit: float = math.inf

    def forward(self, gate_up_N2F: Tensor) -> Tensor:
        """Shape (N, 2 F) to (N, F)."""
        gate_NF, up_NF = self._parts(gate_up_N2F)
        if self.activation != "clamped":
            return glu_forward(gate_NF, up_NF, self.activation)
        gate_NF, up_NF = wide(gate_NF).clamp(max=self.limit), wide(up_NF).clamp(-self.limit, self.limit)
        return ((up_NF + 1.0) * gate_NF * torch.sigmoid(gate_NF * self.alpha)).to(gate_up_N2F.dtype)

    def backward(self, dh_NF: Tensor, gate_up_N2F: Tensor) -> tuple[Tensor, Tensor]:
        """h again, shape (N, F), and the gradient of ``gate_up``, shape (N, 2 F); ``dh`` may be overwritten."""
        gate_NF, up_NF = self._parts(gate_up_N2F)
        if self.activation != "clamped":
            h_NF, d_N2F = glu_backward(dh_NF, gate_NF, up_NF, self.activation)
            dgate_NF, dup_NF = d_N2F.chunk(2, 1)
            return h_NF, torch.stack((dgate_NF, dup_NF), -1).flatten(1) if self.interleaved else d_N2F
        wide_gate_NF, wide_up_NF, wide_dh_NF = wide(gate_NF), wide(up_NF), wide(dh_NF)
        gate_c_NF, up_c_NF = wide_gate_NF.clamp(max=self.limit), wide_up_NF.clamp(-self.limit, self.limit)
        sigmoid_NF = torch.sigmoid(gate_c_NF * self.alpha)
        swish_NF = gate_c_NF * sigmoid_NF
        slope_NF = sigmoid_NF + self.alpha * swish_NF * (1.0 - sigmoid_NF)
        dgate_NF = wide_dh_NF * (up_c_NF + 1.0) * slope_NF * (wide_gate_NF <= self.limit)
        dup_NF = wide_dh_NF * swish_NF * (wide_up_NF.abs() <= self.limit)
        h_NF = ((up_c_NF + 1.0) * swish_NF).to(dh_NF.dtype)
        parts = torch.stack((dgate_NF, dup_NF), -1).flatten(1) if self.interleaved else torch.cat((dgate_NF, dup_NF), 1)
        return h_NF, parts.to(dh_NF.dtype)

    def _parts(self, gate_up_N2F: Tensor) -> tuple[Tensor, Tensor]:
        if self.interleaved:  # the kernels want neighbouring columns
            return gate_up_N2F[:, ::2].contiguous(), gate_up_N2F[:, 1::2].contiguous()
        gate_NF, up_NF = gate_up_N2F.chunk(2, 1)
        return gate_NF, up_NF


def wide(x: Tensor) -> Tensor:
    """In fp32, or as it is where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
