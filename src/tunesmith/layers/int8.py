"""A frozen table in 8 bits a weight: the output head, and the embedding that shares it.

Each row is integers of -127 to 127 times one fp32 number, its largest magnitude over 127; what comes out is that product
rounded to bf16, whatever the model computes in. So the head is one set of numbers: training, dev loss, decoding, scoring and
parity read the same ones, and a stock model with them in its head is the oracle of the tests.

Bytes: ``V (D + 4)`` instead of ``2 V D``. Products read it through ``kernels/sliced.py``, a slice of the vocabulary in the
buffer that NF4 weights have anyway (``max(SLICE * D, ...)`` numbers).

Refused: blocks of 64 with a scale each (3 to 6 % more bytes; docs/LOG.md has both), and 4 bits, which the embedding of a tied
model does not bear.

Cost on a GPU: every chunk of 256 supervised rows reads V D bytes and writes and reads 2 V D, twice; a token that is decoded,
once.

Shape suffixes: T tokens, C rows of one chunk, D hidden size, V vocabulary, P some of the rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.errors import ModelError
from tunesmith.kernels.sliced import SLICE, sliced_mm, sliced_mm_back
from tunesmith.kernels.upload import upload
from tunesmith.layers.dense_buffer import DENSE

LARGEST = 127


class Int8Table(nn.Module):
    """A frozen table in 8 bits, one scale a row.

    Args:
        table_VD: dense, of any float dtype, which is not kept; it is quantised where it is to lie.
        device: where that is.

    Attributes:
        in_fp16: it multiplies in fp16 what flows in fp32 (``models/fp16_compute.py``).

    Raises:
        ModelError: the table holds NaN or infinity.
    """

    codes_VD: Tensor
    scale_V1: Tensor

    def __init__(self, table_VD: Tensor, device: torch.device | str = "cpu"):
        super().__init__()
        self.shape, self.in_fp16 = table_VD.shape, False
        self.register_buffer("codes_VD", torch.empty(self.shape, dtype=torch.int8, device=device))
        self.register_buffer("scale_V1", torch.empty(self.shape[0], 1, dtype=torch.float32, device=device))
        with torch.no_grad():
            for start in range(0, self.shape[0], SLICE):
                rows_PD = upload(table_VD[start : start + SLICE], device).float()
                scale_P1 = rows_PD.abs().amax(1, keepdim=True).div_(LARGEST)
                self.scale_V1[start : start + SLICE] = scale_P1
                # A row of zeros has scale 0: its codes are 0 / tiny.
                self.codes_VD[start : start + SLICE] = (rows_PD / scale_P1.clamp(min=1e-38)).round_()
        if not self.scale_V1.isfinite().all():
            raise ModelError("a weight holds NaN or infinity", "get the checkpoint again")

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes_VD.nbytes + self.scale_V1.nbytes

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows in the process-wide buffer: valid until the next call on any weight, never to be kept."""
        with torch.no_grad():
            bf16_PD = self._room(stop - start, torch.bfloat16)
            torch.mul(self.codes_VD[start:stop], self.scale_V1[start:stop], out=bf16_PD)
            return bf16_PD if dtype == torch.bfloat16 else self._room(stop - start, dtype).copy_(bf16_PD)

    def picked(self, ids_T: Tensor) -> Tensor:
        """Some rows, shape (T, D), bf16, in memory of their own."""
        return self.codes_VD[ids_T].mul(self.scale_V1[ids_T]).bfloat16()

    def _room(self, rows: int, dtype: torch.dtype) -> Tensor:
        return DENSE.first(self.codes_VD.device, dtype, rows * self.shape[1]).view(rows, -1)

    def _apply(self, fn: Any, recurse: bool = True) -> "Int8Table":
        """Follow a move to another device, not a change of dtype."""
        scale_V1 = self.scale_V1
        super()._apply(fn, recurse)
        self._buffers["scale_V1"] = scale_V1.to(self.codes_VD.device)
        return self


class Int8Head(nn.Module):
    """The frozen output head in 8 bits, in the place of a linear layer.

    Args:
        table: its weight.
        bias: shape (V,), or None.
    """

    bias: nn.Parameter | None

    def __init__(self, table: Int8Table, bias: nn.Parameter | None = None):
        super().__init__()
        self.table = table
        self.out_features, self.in_features = table.shape
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The codes: the shape and the place of the weight, not its numbers."""
        return self.table.codes_VD

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (..., D) to (..., V), in the dtype of the input."""
        y_CV = _Product.apply(hidden.reshape(-1, self.in_features), self.table)
        assert isinstance(y_CV, Tensor)
        y_CV = y_CV if self.bias is None else y_CV + self.bias
        return y_CV.view(*hidden.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As ``nn.Linear``, and the bits."""
        return f"in_features={self.in_features}, out_features={self.out_features}, 8 bits a weight"


class Int8Embedding(nn.Module):
    """The embedding that shares the table of a head in 8 bits.

    Args:
        table: of the head.
        dtype: of the rows that come out.
    """

    def __init__(self, table: Int8Table, dtype: torch.dtype):
        super().__init__()
        self.table, self.dtype = table, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 of shape (...) to (..., D)."""
        return self.table.picked(ids.reshape(-1)).to(self.dtype).view(*ids.shape, -1)


class _Product(torch.autograd.Function):
    """``x W^T`` with a frozen W; saves nothing."""

    @staticmethod
    def forward(ctx: Any, x_CD: Tensor, table: Int8Table) -> Tensor:
        ctx.table = table
        x_CD = x_CD.contiguous()
        return sliced_mm(x_CD, table, x_CD.new_empty(len(x_CD), table.shape[0]))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        return sliced_mm_back(grads[0], ctx.table).to(grads[0].dtype), None
