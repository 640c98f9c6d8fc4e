"""A frozen weight held as the blocks of the GGUF that is deployed, dense only while it is multiplied.

The counterpart of ``NF4Weight`` (``layers/nf4.py``): the same buffer, the same products, another way to lie in memory. On a CPU
the blocks are the mapped pages of the file itself, so that all ranks of a run and llama.cpp beside them share one copy.

Nothing of it is saved: the file is the checkpoint.
"""

import torch
from torch import Tensor, nn

from tunesmith.kernels.blocks import Blocks, dequantize_blocks
from tunesmith.layers.dense_buffer import DENSE


class BlockWeight(nn.Module):
    """A frozen weight (O, I) in blocks.

    Args:
        q: the blocks; they become a buffer.
        dtype: that the products are usually asked for in, as ``nn.Linear.weight.dtype`` would say it.
    """

    raw: Tensor

    def __init__(self, q: Blocks, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("raw", q.raw, persistent=False)
        self.kind, self.shape, self.dtype = q.kind, torch.Size(q.shape), dtype

    @property
    def q(self) -> Blocks:
        """The blocks, for the kernels."""
        return Blocks(self.raw, self.kind, tuple(self.shape))

    @property
    def nbytes(self) -> int:
        """Of the blocks."""
        return self.raw.nbytes

    @property
    def device(self) -> torch.device:
        """Where it is computed with."""
        return self.raw.device

    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()

    def dense(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The dense weight in the process-wide buffer: valid until the next call on any weight, never to be kept.

        Args:
            dtype: of the result.
            out: where to write instead, of the weight's shape; rows may lie apart, all at one distance.
        """
        if out is None:
            out = DENSE.first(self.device, dtype, self.numel()).view(self.shape)
        return dequantize_blocks(self.q, dtype, out)
