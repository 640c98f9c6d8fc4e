"""The embedding or the head, trained whole: PEFT's ``modules_to_save``.

A copy of the table in fp32 stands beside the frozen one and takes its place; switched off (``is_on``), the frozen one counts.
What is multiplied is the copy in the dtype of the products, as the base's table is, so a model whose copy was not trained yet
computes what its base computes, to the bit.

The head is cast a slice at a time where the loss reads it (``kernels/sliced.py``), and its gradient is added up in fp32 in the
same visit. Whoever decodes reads it a row at a time, so there the cast is kept until the table changes. Where head and
embedding are one table, so are their copies.

Cost: 4 bytes a weight for the copy, 4 for its gradient and 8 for AdamW's moments; a step of several packs holds one gradient
more while it is added up. Refused: a copy in 16 bits, whose updates are lost in rounding (PEFT keeps the dtype of the base);
a cast of the whole head, kept through training.

Source: ``ModulesToSaveWrapper`` in ``peft/utils/other.py`` of PEFT 0.21, the oracle of the tests.

Shape suffixes: P some of the rows, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from tunesmith.kernels.fp16_scaled_mm import scaled_mm
from tunesmith.layers.dense_buffer import DENSE
from tunesmith.layers.new_rows import NewRows, RowsHead


class WholeTable(NewRows):
    """All rows of a table.

    Args:
        table_VD: fp32 (fp64 in tests); it is held, not copied.
        twin: full name of the other module that it is the table of, where head and embedding are one; else None.
    """

    def __init__(self, table_VD: Tensor, twin: str | None = None):
        super().__init__(0, table_VD)
        self.twin = twin


class TableEmbedding(nn.Module):
    """An embedding that is trained.

    Args:
        base: the frozen one.
        table: belongs to the model (``models/new_tokens.py``), and may be the head's too.
        factor: that rows are multiplied by.
        dtype: of the rows that come out.
    """

    def __init__(self, base: nn.Embedding, table: WholeTable, factor: float, dtype: torch.dtype):
        super().__init__()
        self.base, self.factor, self.dtype, self._table = base, factor, dtype, (table,)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 of shape (...) to (..., D)."""
        (table,) = self._table
        if not table.is_on:
            return self.base(ids)
        rows = embedding(ids, table.rows, self.base.padding_idx)
        return (rows if self.factor == 1.0 else rows * self.factor).to(self.dtype)


class TableHead(RowsHead):
    """A head that is trained.

    Args:
        base: the frozen one, without a bias.
        table: see ``TableEmbedding``.
    """

    def __init__(self, base: nn.Linear, table: WholeTable):
        super().__init__(base, table)
        self.in_fp16 = base.weight.dtype == torch.float16
        self._cast: tuple[tuple[int, int, torch.dtype], Tensor] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (..., D) to (..., V)."""
        table = self.rows
        if not table.is_on:
            return self.base(hidden)
        if torch.is_grad_enabled():
            return linear(hidden, table.rows.to(hidden.dtype))
        if not self.in_fp16:
            return linear(hidden, self._dense(hidden.dtype))
        logits = scaled_mm(hidden.reshape(-1, hidden.shape[-1]).float(), self._dense(torch.float16))
        return logits.view(*hidden.shape[:-1], -1)

    def sliced(self) -> "SlicedTable":
        """What ``linear_cross_entropy`` takes as the head."""
        return SlicedTable(self.rows.rows.detach(), self.in_fp16)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        """The table in a dtype, kept until it is another one."""
        table_VD = self.rows.rows.detach()
        key = table_VD.data_ptr(), table_VD._version, dtype
        if table_VD.dtype == dtype:
            return table_VD
        if self._cast is None or self._cast[0] != key:
            self._cast = None  # first, so that no two lie there
            with torch.inference_mode(False):
                self._cast = key, table_VD.to(dtype)
        return self._cast[1]


class SlicedTable:
    """A trained head, dense in the dtype of the products a slice at a time (``kernels/sliced.py``).

    Args:
        table_VD: wide.
        in_fp16: it multiplies in fp16 what flows in fp32.
    """

    def __init__(self, table_VD: Tensor, in_fp16: bool):
        self._table_VD, self.shape, self.in_fp16 = table_VD, table_VD.shape, in_fp16

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows, valid until the next call on any weight."""
        part_PD = self._table_VD[start:stop]
        if part_PD.dtype == dtype:
            return part_PD
        return DENSE.first(part_PD.device, dtype, part_PD.numel()).view(part_PD.shape).copy_(part_PD)
