"""The product of a weight and its adapter in one Triton kernel; the specification is ``tunesmith/kernels/lora.py``.

A tiled GEMM with two loops into one fp32 accumulator. The adapter's loop comes first, over the rank, so that its sum can
be multiplied by the scale where it lies; the base product is then added on top and the total is rounded once. The second
loop is the ordinary one, so the adapter costs R / I of its work and no visit of the output: the usual second GEMM reads
and writes all T x O elements again for a rank of 16.

Neighbouring programs share rows of W: programs are numbered in groups of eight tiles of tokens, so that the tiles of W
which one group streams are still in the L2 cache for its other rows (the order of Triton's own tutorial on GEMM).

In bf16 and fp16 alone: in fp32 two GEMMs of the library lose nothing. Refused: autotuning (see the package's essay). The tile
sizes follow from the shape; compiled for sm_80 and sm_86 they take at most 64 KB of shared memory (consumer cards have 99),
for sm_90 104 KB, and no register is spilled: 32 tokens by 128 outputs would. They have not been tuned on any device.

Shape suffixes: T tokens, I in_features, O out_features, R rank.
"""

# Triton's types do not say how a kernel is launched: keywords, numbers for constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_I = 64  # columns of a step of the loop
GROUP = 8  # tiles of tokens that share tiles of W in the cache


@triton.jit
def _add_product(acc, x_ptr, w_ptr, row, out_col, T, out_features, depth, x_stride, w_stride, BLOCK_K: tl.constexpr):
    """``acc + x[row] @ w[out_col].T`` over ``depth`` columns of both."""
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + row[:, None] * x_stride + k[None, :], (row[:, None] < T) & (k[None, :] < depth), other=0.0)
        w = tl.load(
            w_ptr + out_col[None, :] * w_stride + k[:, None],
            (out_col[None, :] < out_features) & (k[:, None] < depth),
            other=0.0,
        )
        acc = tl.dot(x, w, acc)
    return acc


@triton.jit
def _matmul(
    x_ptr,
    weight_ptr,
    xA_ptr,
    B_ptr,
    bias_ptr,
    y_ptr,
    T,
    in_features,
    out_features,
    R,
    x_stride,
    weight_stride,
    xA_stride,
    B_stride,
    y_stride,
    scale,
    EIGHTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    if EIGHTS:  # the launcher tells multiples of 16 alone, and a rank of 8 would be loaded by the element
        R, xA_stride, B_stride = R // 8 * 8, xA_stride // 8 * 8, B_stride // 8 * 8
    program = tl.program_id(0)
    tiles_T, tiles_O = tl.cdiv(T, BLOCK_T), tl.cdiv(out_features, BLOCK_O)
    group = program // (GROUP * tiles_O)
    rows = tl.minimum(tiles_T - group * GROUP, GROUP)
    within = program % (GROUP * tiles_O)
    row = (group * GROUP + within % rows).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    col = (within // rows).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    acc = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    acc = _add_product(acc, xA_ptr, B_ptr, row, col, T, out_features, R, xA_stride, B_stride, BLOCK_R) * scale
    acc = _add_product(acc, x_ptr, weight_ptr, row, col, T, out_features, in_features, x_stride, weight_stride, BLOCK_I)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, col < out_features, other=0.0).to(tl.float32)[None, :]
    mask = (row[:, None] < T) & (col[None, :] < out_features)
    tl.store(y_ptr + row[:, None] * y_stride + col[None, :], acc.to(y_ptr.dtype.element_ty), mask)


def lora_matmul(
    x_TI: Tensor,
    weight_OI: Tensor,
    xA_TR: Tensor,
    B_OR: Tensor,
    scale: float,
    bias_O: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As ``tunesmith.kernels.lora.lora_matmul``: shape (T, O), accumulated in fp32 and rounded once."""
    (T, in_features), (out_features, R) = x_TI.shape, B_OR.shape
    y_TO = torch.empty((T, out_features), dtype=x_TI.dtype, device=x_TI.device) if out is None else out
    for tensor in (x_TI, weight_OI, xA_TR, B_OR, y_TO):
        assert tensor.stride(1) == 1 and tensor.element_size() == 2, (tensor.shape, tensor.stride(), tensor.dtype)
    assert weight_OI.shape == (out_features, in_features) and xA_TR.shape == (T, R), (weight_OI.shape, xA_TR.shape)
    block_T = min(128, max(16, triton.next_power_of_2(T)))
    block_O = 128 if block_T > 32 else 64
    block_R = min(BLOCK_I, max(16, triton.next_power_of_2(R)))
    if T:
        _matmul[(triton.cdiv(T, block_T) * triton.cdiv(out_features, block_O),)](
            x_TI,
            weight_OI,
            xA_TR,
            B_OR,
            weight_OI if bias_O is None else bias_O,
            y_TO,
            T,
            in_features,
            out_features,
            R,
            *(tensor.stride(0) for tensor in (x_TI, weight_OI, xA_TR, B_OR, y_TO)),
            scale,
            EIGHTS=all(number % 8 == 0 for number in (R, xA_TR.stride(0), B_OR.stride(0))),
            HAS_BIAS=bias_O is not None,
            GROUP=GROUP,
            BLOCK_T=block_T,
            BLOCK_O=block_O,
            BLOCK_I=BLOCK_I,
            BLOCK_R=block_R,
            num_warps=8 if block_T == 128 else 4,
            num_stages=3,
        )
    return y_TO
