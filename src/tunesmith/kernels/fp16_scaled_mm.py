"""Matrix products in fp16 that do not overflow: every row of the input is scaled by a power of two of its own.

Hardware without bf16 (compute capability below 8.0: V100, T4) multiplies fp16 eight times as fast as fp32, and fp16 ends at
65,504. Activations of present models pass that, and so do gradients once a loss is scaled up to keep them from vanishing at
the other end. But a product is linear in each row of its input: here a row is multiplied by the power of two that brings its
largest element to [2^14, 2^15), rounded to fp16, multiplied with the fp16 weight into an fp32 accumulator, written as fp32,
and divided by the same power. A power of two changes no digit, so what is left is the rounding to eleven bits. Elements keep
all eleven down to 2^-28 of the largest of their row. Everything between the products (residual stream, norms, attention,
activations, loss) is fp32 and needs no care; neither does the loss, which is not scaled.

Refused: clamping to 65,280 and zeroing what is not a number, which trains on other numbers than the model's (gradient cosine
0.91 on the model of ``tests/models/test_fp16_compute.py``, against 0.99998 here); a loss scale for the whole model, which skips
steps and shields the gradients alone; scaling by the exact maximum, which rounds twice. A row that holds infinity or NaN keeps
it, and the loss shows it.

Cost: two visits of the input more (its largest element, its cast) and one of the output, against I products an output.

The second operand is the frozen weight, whose elements lie within fp16 (``models/fp16_compute.py`` refuses a model where they
do not), so it needs no scale. On a CPU, whose fp16 product gives no fp32, the rounded operands are multiplied in fp32, a block
of the weight at a time: the specification and the tests' path. The CUDA branch has not been run on such a card.

Mixed precision training: Micikevicius et al. 2018, section 3.2, whose single loss scale this makes one a row.

Shape suffixes: T tokens, I in_features, O out_features (of a product, whichever way the weight is read), P some of the rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 65504.0  # of fp16
BLOCK = 4096  # columns of the weight that are fp32 at once on a CPU: 32 MB for 2,048 rows
_BIAS, _MANTISSA = 127, 23  # of fp32: exponent 0 is stored as 127, above 23 bits of mantissa
_TOP = 14  # exponent of a row's largest element after scaling: one below that of 65,504, so that rounding up is no overflow


class OverflowRows:
    """A count of rows that plain fp16 would have made infinite, kept on their devices until it is read.

    A row counts once in each product that it enters, and again where it is recomputed.
    """

    def __init__(self) -> None:
        self._counts: dict[torch.device, Tensor] = {}

    def add(self, largest_T: Tensor) -> None:
        """Add the rows whose largest element is finite and beyond fp16, without waiting for the device."""
        if largest_T.device not in self._counts:
            with torch.inference_mode(False):  # a counter born in inference mode could not be added to outside of it
                self._counts[largest_T.device] = torch.zeros((), dtype=torch.int64, device=largest_T.device)
        self._counts[largest_T.device] += ((largest_T > LARGEST) & (largest_T < torch.inf)).sum()

    def total(self) -> int | None:
        """How many; None where no product was computed in fp16. Waits for the device."""
        return sum(int(count) for count in self._counts.values()) if self._counts else None


class Rows(NamedTuple):
    """An input whose rows are scaled: ``x = half * factor``.

    Attributes:
        half_TK: fp16, the largest element of a row between 2^14 and 2^15 in magnitude; infinity and NaN stay.
        factor_T1: fp32, a power of two for each row.
    """

    half_TI: Tensor
    factor_T1: Tensor

    def mm(self, weight_IO: Tensor, out: Tensor | None = None) -> Tensor:
        """``x weight``, accumulated and written in fp32.

        Args:
            weight_KN: shape (I, O), fp16, any strides.
            out: shape (T, O), fp32, to be written; rows may be strided.

        Returns:
            Shape (T, O), fp32; ``out`` where it is given.
        """
        assert weight_IO.dtype == torch.float16, weight_IO.dtype
        y_TO = self.factor_T1.new_empty(len(self.half_TI), weight_IO.shape[1]) if out is None else out
        if self.half_TI.is_cuda:
            # models/device.py has asked cuBLAS not to add parts of a sum in fp16.
            return torch.mul(torch.mm(self.half_TI, weight_IO, out_dtype=torch.float32), self.factor_T1, out=y_TO)
        x_TI = self.half_TI.float()
        for y_TP, weight_IP in zip(y_TO.split(BLOCK, 1), weight_IO.split(BLOCK, 1), strict=True):
            torch.mm(x_TI, weight_IP.float(), out=y_TP)
        return y_TO.mul_(self.factor_T1)


def scale_rows(x_TI: Tensor, overflow: OverflowRows | None = None) -> Rows:
    """Scale every row by a power of two and round to fp16.

    Args:
        x_TK: shape (T, I), fp32; rows may be strided.
        overflow: where rows beyond 65,504 are counted.
    """
    assert x_TI.dtype == torch.float32, x_TI.dtype
    largest_T = torch.linalg.vector_norm(x_TI, torch.inf, dim=1)
    if overflow is not None:
        overflow.add(largest_T)
    # 2^n is (n + 127) << 23 as an fp32. Rows below 2^-112 are multiplied by 2^126, the largest power whose inverse is normal.
    exponent_T = (largest_T.view(torch.int32) >> _MANTISSA) & 255
    stored_T1 = (2 * _BIAS + _TOP - exponent_T).clamp_(max=2 * _BIAS - 1)[:, None]
    up_T1, down_T1 = (part.bitwise_left_shift(_MANTISSA).view(torch.float32) for part in (stored_T1, 2 * _BIAS - stored_T1))
    half_TI = torch.mul(x_TI, up_T1, out=torch.empty(x_TI.shape, dtype=torch.float16, device=x_TI.device))
    return Rows(half_TI, down_T1)


def scaled_mm(x_TI: Tensor, weight_OI: Tensor, out: Tensor | None = None, *, overflow: OverflowRows | None = None) -> Tensor:
    """``x W^T`` with x rounded to fp16 row by row.

    Args:
        x_TI: shape (T, I), fp32; rows may be strided.
        weight_OI: shape (O, I), fp16; rows may be strided.
        out: shape (T, O), fp32, to be written; rows may be strided.
        overflow: where rows of x beyond 65,504 are counted.

    Returns:
        Shape (T, O), fp32; ``out`` where it is given.
    """
    return scale_rows(x_TI, overflow).mm(weight_OI.T, out)


def scaled_mm_back(
    dy_TO: Tensor, weight_OI: Tensor, out: Tensor | None = None, *, overflow: OverflowRows | None = None
) -> Tensor:
    """``dy W``, the gradient of x in ``scaled_mm``, with dy rounded to fp16 row by row.

    Args:
        dy_TO: shape (T, O), fp32; rows may be strided.
        weight_OI: as in ``scaled_mm``.
        out: shape (T, I), fp32, to be written; rows may be strided.
        overflow: where rows of dy beyond 65,504 are counted.

    Returns:
        Shape (T, I), fp32; ``out`` where it is given.
    """
    return scale_rows(dy_TO, overflow).mm(weight_OI, out)
