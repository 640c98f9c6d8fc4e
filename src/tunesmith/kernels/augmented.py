"""``[W | scale B]`` of layers that read one input, as one matrix: what an adapted group is multiplied with.

The frozen weights of the layers stand under each other; beside each stands its B, in the columns of its own ranks, and zeros in
those of the others (``layers/lora.py`` says why one product over it is rounded once). Quantised weights are dequantised into
their places. On a GPU ``kernels/triton/augmented.py`` does all of it in one launch, from B as it is trained, so that
nothing has to be cast or put side by side before.

Shape suffixes: I in_features, O out_features, M outputs of a group, R rank, Z features and ranks.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from tunesmith.kernels import triton as on_gpu
from tunesmith.kernels.nf4 import NF4, dequantize_nf4


class Part(NamedTuple):
    """One layer of a group.

    Attributes:
        q: its weight, shape (O, I); None for one that stands in its place already.
        B_OR: fp32 (or fp64), contiguous.
        scale: factor on B.
    """

    q: NF4 | None
    B_OR: Tensor
    scale: float


def fill_augmented_(out_MZ: Tensor, inputs: int, parts: Sequence[Part]) -> Tensor:
    """Write every quantised weight, every ``scale B`` and the zeros beside them.

    Args:
        out_MZ: to be written; rows may be strided.
        inputs: columns of the weights; all that are right of those are written.
        parts: in the order of their rows and ranks.

    Returns:
        ``out_MZ``.
    """
    if out_MZ.is_cuda:
        return on_gpu.fill_augmented_(out_MZ, inputs, parts)
    out_MZ[:, inputs:] = 0
    row = rank = 0
    for q, B_OR, scale in parts:
        rows_OZ = out_MZ[row : row + len(B_OR)]
        if q is not None:
            dequantize_nf4(q, out_MZ.dtype, rows_OZ[:, :inputs])
        rows_OZ[:, inputs + rank : inputs + rank + B_OR.shape[1]] = B_OR * scale
        row, rank = row + len(B_OR), rank + B_OR.shape[1]
    return out_MZ
