"""Memory of the largest block of scores, for all blocks of a long document in turn.

Each block of queries sees more keys than the one before it, so its scores fit no hole that an earlier block left; between two
blocks oneDNN puts the product that it has compiled for the new shape, which stays, and the heap grows by every block: a row of
32,768 tokens took 8.2 GB for tensors of 1.2 (docs/LOG.md). So the largest size is taken first and once, and the blocks are
views of it. What is left, copies of keys within an operation, is why ``train/loop.py`` has large blocks mapped apart for long
rows.
"""

import math

import torch
from torch import Tensor


class Scratch:
    """Memory by name.

    Args:
        keys: of the block that has most.
    """

    def __init__(self, keys: int):
        self._keys = keys
        self._memory: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> Tensor:
        """A tensor that holds anything, in the memory of this name.

        Args:
            axis: which of its dimensions are keys.
        """
        largest = math.prod(shape) // shape[axis] * self._keys
        if name not in self._memory or len(self._memory[name]) < largest:  # of a block of few queries less was taken
            self._memory[name] = torch.empty(largest, dtype=dtype)
        return self._memory[name][: math.prod(shape)].view(shape)
