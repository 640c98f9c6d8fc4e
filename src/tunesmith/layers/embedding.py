"""Frozen embedding tables that do not lie in the device's memory as they are.

A table is read a row at a time, so it need not be where the products are. One family has a table of 262,144 x 8,960: half
of its weights, of which a step of 8,192 tokens reads 3 %. ``HostEmbedding`` leaves it in host memory and copies the rows that
are asked for; ``NF4Embedding`` (``layers/nf4.py``) holds it in 4.13 bits a weight. ``FrozenEmbedding`` is either of them in
the place of a stock embedding, with its scale.

Refused: accelerate's offload, which copies the whole table in every forward; and a gather by the device out of pinned memory,
which pins all of it.

Cost on a GPU: one copy from pinned memory that the device does not wait for (17.9 KB a token there). A pack's ids come from
the host, where they still lie, so a training names them (``known_ids``): then nobody waits, and the rows of the next pack are
gathered while the device computes this one. Whoever does not (decoding, whose ids are made on the device) has the host read
them, which waits for what was queued before. On a CPU it costs nothing.

Source: the scaled word embeddings of transformers 5.23, whose forward is the oracle of the tests.

Shape suffixes: T tokens, V vocabulary, D hidden size (width of a table).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.layers.int8 import Int8Embedding
from tunesmith.layers.nf4 import NF4Embedding


class HostEmbedding(nn.Module):
    """A frozen table that stays in host memory wherever the model goes.

    Args:
        table_VD: the table, on the CPU; it is held, not copied.

    Attributes:
        known: on the CPU, the ids that are asked for next; None where only the device has them.
    """

    known: Tensor | None = None
    weight: Tensor

    def __init__(self, table_VD: Tensor):
        super().__init__()
        assert table_VD.device.type == "cpu"
        # No parameter: whoever asks a model where it is looks at its first one.
        self.register_buffer("weight", table_VD.detach())

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 of shape (...) on any device to (..., D) on that device, in the dtype of the table."""
        there = ids if self.known is None or self.known.shape != ids.shape else self.known
        ids_T = there.reshape(-1).cpu()
        shape = (*ids.shape, self.weight.shape[1])
        if not ids.is_cuda:
            return self.weight.index_select(0, ids_T).view(shape).to(ids.device)
        # PyTorch's pinned allocator gives the buffer to nobody before the copy out of it is done.
        rows_TD = torch.empty(len(ids_T), shape[-1], dtype=self.weight.dtype, pin_memory=True)
        torch.index_select(self.weight, 0, ids_T, out=rows_TD)
        return rows_TD.to(ids.device, non_blocking=True).view(shape)

    def _apply(self, fn: Any, recurse: bool = True) -> "HostEmbedding":
        """Stay: neither a move of the model nor a change of its dtype reaches the table."""
        return self

    def extra_repr(self) -> str:
        """As ``nn.Embedding``, and the place."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, on the CPU"


@contextmanager
def known_ids(model: nn.Module, ids: Tensor) -> Iterator[None]:
    """Within the block the tables of a model that lie in host memory are asked for these ids, of which the device has a copy.

    Args:
        ids: on the CPU.
    """
    assert ids.device.type == "cpu", ids.device
    tables = [module for module in model.modules() if isinstance(module, HostEmbedding)]
    for table in tables:
        table.known = ids
    try:
        yield
    finally:
        for table in tables:
            table.known = None


class FrozenEmbedding(nn.Module):
    """A stock embedding whose rows come from another table; the scale of its output is kept.

    Args:
        rows: where they come from.
        scale: scalar tensor that the output is multiplied by, in the dtype of the rows; None for none.
        factor: the same, unrounded.

    Attributes:
        widens: rows come out in fp32, times the factor (``models/fp16_compute.py``).
    """

    scale: Tensor | None

    def __init__(self, rows: HostEmbedding | NF4Embedding | Int8Embedding, scale: Tensor | None, factor: float = 1.0):
        super().__init__()
        self.rows, self.factor, self.widens = rows, factor, False
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 of shape (...) to (..., D)."""
        rows = self.rows(ids)
        if self.widens:
            return rows.float().mul_(self.factor)
        return rows if self.scale is None else rows * self.scale.to(rows.dtype)


def scale_of(stock: nn.Embedding, name: str) -> Tensor | None:
    """The scalar that a stock embedding multiplies its rows by, None for a plain one.

    Raises:
        ModelError: an embedding of another class whose scale is not known.
    """
    scale = dict(stock.named_buffers()).get("embed_scale")
    if type(stock) is not nn.Embedding and scale is None:
        raise ModelError(f"{name}: its embedding is a {type(stock).__name__}, not a plain or scaled one", "leave it as it is")
    return scale
