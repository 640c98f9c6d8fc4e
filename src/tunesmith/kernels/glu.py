"""Gated linear unit: ``h = activation(gate) * up``, and a backward pass that recomputes what it needs.

GLU variants (Shazeer 2020, equations 5 and 6): SwiGLU with ``silu``, GEGLU with the tanh approximation of ``gelu``. Three
tensors of T x F meet here, the widest of a decoder layer, so what is saved and how often memory is visited decides the
cost. Saved for the backward pass are gate and up alone. From them and the incoming gradient one pass makes all three
results: the gradients of gate and up, side by side as the product before wants them, and h once more, which the adapter
of the down projection needs for the gradient of its A. h is written over its own gradient, which nobody needs again.

On a CPU the backward pass walks in blocks that stay in the cache (1,500 x 1,536 fp32 on one core: 4.0 ms instead of 6.4);
the forward pass, two operations, gains nothing from that. In bf16 every operation computes in fp32 and rounds once, so
that each result carries at most two roundings more than the exact value. Refused: converting blocks to fp32 first
(6.0 ms instead of 4.5), and saving h (a third tensor of T x F a layer).

On a GPU the functions of the same names in ``kernels/triton/glu.py`` run instead.

Shape suffixes: T tokens, F features of the hidden layer, P some of the rows.
"""

import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu

ACTIVATIONS = ("silu", "gelu_tanh")
BLOCK = 2**17  # elements of a block of the backward pass: five tensors of 512 KB in fp32


def glu_forward(gate_TF: Tensor, up_TF: Tensor, activation: str, out: Tensor | None = None) -> Tensor:
    """``activation(gate) * up``.

    Args:
        gate_TF: shape (T, F), fp32, bf16 or fp16 (fp64 off the GPU); rows may be strided.
        up_TF: shape and dtype of gate; rows may be strided.
        activation: "silu" or "gelu_tanh".
        out: shape and dtype of gate, rows may be strided; a new tensor where it is not given.

    Returns:
        ``out``, shape (T, F).
    """
    assert activation in ACTIVATIONS, f"{activation!r} is none of {ACTIVATIONS}"
    out_TF = gate_TF.new_empty(gate_TF.shape) if out is None else out
    if gate_TF.is_cuda:
        return on_gpu.glu_forward(gate_TF, up_TF, activation, out_TF)
    return _activate(gate_TF, activation, out_TF).mul_(up_TF)


def glu_backward(dh_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """h again, and the gradients of gate and up.

    Args:
        dh_TF: gradient of h, shape (T, F); rows may be strided. Overwritten with h.
        gate_TF: as in the forward pass.
        up_TF: likewise.
        activation: "silu" or "gelu_tanh".

    Returns:
        ``(h_TF, dgate_dup_T2F)``: dh's memory, and a new tensor with the gradient of gate in its first F columns.
    """
    assert activation in ACTIVATIONS, f"{activation!r} is none of {ACTIVATIONS}"
    if gate_TF.is_cuda:
        return on_gpu.glu_backward(dh_TF, gate_TF, up_TF, activation)
    tokens, features = gate_TF.shape
    d_T2F = gate_TF.new_empty(tokens, 2 * features)
    rows = max(1, BLOCK // features)
    for dh_PF, gate_PF, up_PF, d_P2F in zip(*(x.split(rows) for x in (dh_TF, gate_TF, up_TF, d_T2F)), strict=True):
        dgate_PF, dup_PF = d_P2F.chunk(2, dim=1)
        act_PF = _activate(gate_PF, activation, gate_PF.new_empty(gate_PF.shape))
        dact_PF = dh_PF * up_PF
        if activation == "silu":
            torch.ops.aten.silu_backward.grad_input(dact_PF, gate_PF, grad_input=dgate_PF)
        else:
            torch.ops.aten.gelu_backward.grad_input(dact_PF, gate_PF, approximate="tanh", grad_input=dgate_PF)
        torch.mul(dh_PF, act_PF, out=dup_PF)
        torch.mul(act_PF, up_PF, out=dh_PF)
    return dh_TF, d_T2F


def _activate(gate_TF: Tensor, activation: str, out_TF: Tensor) -> Tensor:
    if activation == "silu":
        return torch.ops.aten.silu.out(gate_TF, out=out_TF)
    return torch.ops.aten.gelu.out(gate_TF, approximate="tanh", out=out_TF)
