"""Rows of the embedding and of the head that are trained: those of new tokens, and no others.

The tables stay frozen, in whatever form they are kept (dense, in 8 bits, in host memory). Beside them lie the rows of the new
tokens, in fp32: where an id is one of theirs, the embedding gives that row; their logits are computed from it. So a training
holds 16 bytes a weight of N rows and no gradient of a table. One set of rows serves both where head and embedding are one
table, as the tables do.

The rows are whole ones and no differences from the frozen rows, as in PEFT's ``trainable_token_indices``: whatever a base holds
in their place, the model is the same. Off (``is_on``), the frozen rows count.

Refused: a dense gradient with a mask (the largest tensor of all), and an update of rank N on the table (a difference).

Source: ``TrainableTokensLayer`` in ``peft/tuners/trainable_tokens/layer.py`` of PEFT 0.21, the oracle of the tests.

Shape suffixes: N rows, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from tunesmith.layers.embedding import FrozenEmbedding
from tunesmith.layers.int8 import Int8Head


class NewRows(nn.Module):
    """The rows of new tokens.

    Args:
        first: id of the first; the others follow.
        rows_ND: fp32 (fp64 in tests).

    Attributes:
        is_on: whether they count; else the frozen rows do.
    """

    def __init__(self, first: int, rows_ND: Tensor):
        super().__init__()
        self.first, self.is_on = first, True
        self.rows = nn.Parameter(rows_ND)

    @property
    def end(self) -> int:
        """Id after the last."""
        return self.first + len(self.rows)


class RowsEmbedding(nn.Module):
    """An embedding that takes the rows of new tokens from elsewhere.

    Args:
        base: frozen; what it multiplies its rows by is applied to the new ones too.
        rows: belong to the model (``models/new_tokens.py``) and not to this module, which may share them with the head.
        factor: that the base multiplies its rows by.
    """

    def __init__(self, base: nn.Module, rows: NewRows, factor: float):
        super().__init__()
        self.base, self.factor, self._rows = base, factor, (rows,)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 of shape (...) to (..., D)."""
        out = self.base(ids)
        (rows,) = self._rows
        if not rows.is_on:
            return out
        is_new = (ids >= rows.first) & (ids < rows.end)
        new = embedding((ids - rows.first).clamp(0, len(rows.rows) - 1), rows.rows).mul(self.factor).to(out.dtype)
        return torch.where(is_new[..., None], new, out)


class RowsHead(nn.Module):
    """A head whose logits of new tokens come from other rows.

    Args:
        base: frozen.
        rows: see ``RowsEmbedding``.
    """

    def __init__(self, base: nn.Linear | Int8Head, rows: NewRows):
        super().__init__()
        self.base, self._rows = base, (rows,)

    @property
    def rows(self) -> NewRows:
        """Of the new tokens."""
        return self._rows[0]

    @property
    def weight(self) -> Tensor:
        """The base's, for shape and place."""
        return self.base.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (..., D) to (..., V)."""
        logits = self.base(hidden)
        rows = self.rows
        if not rows.is_on:
            return logits
        new = (hidden.to(rows.rows.dtype) @ rows.rows.T).to(logits.dtype)
        if self.base.bias is not None:
            new = new + self.base.bias[rows.first : rows.end].to(new.dtype)
        return torch.cat([logits[..., : rows.first], new, logits[..., rows.end :]], -1)


def factor_of(module: nn.Module) -> float:
    """What an embedding multiplies its rows by."""
    facts = vars(module)
    if isinstance(module, FrozenEmbedding):
        return module.factor if module.widens else 1.0 if module.scale is None else float(module.scale)
    if isinstance(facts.get("scale"), float):
        return facts["scale"]
    scale = dict(module.named_buffers()).get("embed_scale")
    return 1.0 if scale is None else float(scale)
