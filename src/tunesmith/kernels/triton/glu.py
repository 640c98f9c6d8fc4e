"""Gated linear unit in Triton; the specification is ``tunesmith/kernels/glu.py``.

Elementwise and bound by memory: the forward pass reads two tensors and writes one, the backward pass reads three and
writes three, h over its own gradient.

Both activations are ``g * sigmoid(z)``, with ``z = g`` for silu and ``z = 2 sqrt(2/pi) (g + 0.044715 g^3)`` for the tanh
approximation of gelu (Hendrycks and Gimpel 2016, section 2; ``1 + tanh(u) = 2 sigmoid(2u)``), so that one formula serves
the two of them and its derivative, ``s + g s (1 - s) dz/dg``, has no cancellation for large negative g.

Shape suffixes: T tokens, F features of the hidden layer.
"""

# Triton's types do not say how a kernel is launched, nor that a kernel may call another.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # features a program


@triton.jit
def _argument(g, GELU: tl.constexpr):
    """``z`` and ``dz/dg``."""
    if GELU:
        return 1.5957691216057308 * g * (1.0 + 0.044715 * g * g), 1.5957691216057308 * (1.0 + 0.134145 * g * g)
    else:
        return g, 1.0


@triton.jit
def _forward(gate_ptr, up_ptr, h_ptr, F, gate_stride, up_stride, h_stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < F
    g = tl.load(gate_ptr + row * gate_stride + col, mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + col, mask, other=0.0).to(tl.float32)
    z, _ = _argument(g, GELU)
    tl.store(h_ptr + row * h_stride + col, (g * tl.sigmoid(z) * up).to(h_ptr.dtype.element_ty), mask)


@triton.jit
def _backward(dh_ptr, gate_ptr, up_ptr, d_ptr, F, dh_stride, gate_stride, up_stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < F
    dh = tl.load(dh_ptr + row * dh_stride + col, mask, other=0.0).to(tl.float32)
    g = tl.load(gate_ptr + row * gate_stride + col, mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + col, mask, other=0.0).to(tl.float32)
    z, dz = _argument(g, GELU)
    s = tl.sigmoid(z)
    act = g * s
    dgate = dh * up * (s + act * (1.0 - s) * dz)
    tl.store(d_ptr + row * 2 * F + col, dgate.to(d_ptr.dtype.element_ty), mask)
    tl.store(d_ptr + row * 2 * F + F + col, (dh * act).to(d_ptr.dtype.element_ty), mask)
    tl.store(dh_ptr + row * dh_stride + col, (act * up).to(dh_ptr.dtype.element_ty), mask)


def _grid(*tensors: Tensor) -> tuple[int, int]:
    T, F = tensors[0].shape
    for tensor in tensors:
        assert tensor.shape == (T, F) and tensor.stride(1) == 1 and tensor.dtype != torch.float64, tensor.stride()
    return T, triton.cdiv(F, BLOCK)


def glu_forward(gate_TF: Tensor, up_TF: Tensor, activation: str, out_TF: Tensor) -> Tensor:
    """As ``tunesmith.kernels.glu.glu_forward``: h, shape (T, F), written to ``out_TF``."""
    grid = _grid(gate_TF, up_TF, out_TF)
    strides = (gate_TF.stride(0), up_TF.stride(0), out_TF.stride(0))
    if grid[0]:
        _forward[grid](gate_TF, up_TF, out_TF, out_TF.shape[1], *strides, GELU=activation == "gelu_tanh", BLOCK=BLOCK)
    return out_TF


def glu_backward(dh_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """As ``tunesmith.kernels.glu.glu_backward``: h in dh's memory, and the gradients of gate and up side by side."""
    grid = _grid(dh_TF, gate_TF, up_TF)
    tokens, features = gate_TF.shape
    d_T2F = torch.empty(tokens, 2 * features, dtype=gate_TF.dtype, device=gate_TF.device)
    strides = (dh_TF.stride(0), gate_TF.stride(0), up_TF.stride(0))
    if grid[0]:
        _backward[grid](dh_TF, gate_TF, up_TF, d_T2F, features, *strides, GELU=activation == "gelu_tanh", BLOCK=BLOCK)
    return dh_TF, d_T2F
