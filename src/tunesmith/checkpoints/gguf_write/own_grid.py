"""Blocks of a Q4_0 file whose weights lay on a grid already, given that very grid in the place of the quantiser's.

A release of quantisation-aware training (``q4_0-unquantized``) is 16-bit weights on a Q4_0 grid; what its file holds must be
these values, not what a search makes of them. A block in which no grid is found keeps what the quantiser chose, so a checkpoint
of another kind passes unchanged. Tensors that llama.cpp's mixture gives another type (head and embedding in Q6_K) stay as they
are.

Most models lie on no grid, and the first blocks of a tensor tell: the others are looked at where one of these has its own.
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from tunesmith.checkpoints.gguf_reader import GgufReader, GgufTensor
from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.checkpoints.gguf_write.types import row_bytes
from tunesmith.kernels.blocks import TYPES
from tunesmith.kernels.own_grid import WEIGHTS, find_q4_0
from tunesmith.tracking import progress

PIECE, LOOK = 2**15, 2**10  # blocks that are looked at together; those that tell whether to go on
OF = TYPES["Q4_0"]


@dataclass(frozen=True)
class OwnGrids:
    """How many blocks of a file have the grid that their weights lay on.

    Attributes:
        kept: of them.
        blocks: of type Q4_0 in which not all is zero.
    """

    kept: int
    blocks: int


def keep_own_grids(source: Path, target: Path) -> OwnGrids:
    """Write the blocks whose grid is found into a quantised file, in place.

    Args:
        source: the 16-bit file that it was made of.
        target: in Q4_0; nobody else reads it yet.
    """
    dense = {tensor.name: tensor for tensor in GgufReader(source).tensors}
    files = [tensor for tensor in GgufReader(target).tensors if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0]
    kept = blocks = 0
    with progress("looking for grids", len(files)) as bar:
        for tensor in files:
            found = _keep(source, dense[tensor.name], target, tensor)
            kept, blocks = kept + found.kept, blocks + found.blocks
            bar.advance()
    return OwnGrids(kept, blocks)


def _keep(source: Path, dense: GgufTensor, target: Path, tensor: GgufTensor) -> OwnGrids:
    total, width = tensor.n_bytes // OF.nbytes, row_bytes(dense.tensor_type, WEIGHTS)

    def weights(first: int, count: int) -> Tensor:
        raw = np.fromfile(source, np.uint8, count=count * width, offset=int(dense.data_offset) + first * width)
        return torch.from_numpy(ggml().widen(raw, dense.tensor_type, WEIGHTS))

    begin = weights(0, min(LOOK, total))
    if not (find_q4_0(begin).has_grid & begin.any(1)).any():
        return OwnGrids(0, total)
    blocks = np.memmap(target, np.uint8, "r+", offset=int(tensor.data_offset), shape=(total, OF.nbytes))
    kept = some = 0
    for first in range(0, total, PIECE):
        piece = weights(first, min(PIECE, total - first))
        found, nonzero = find_q4_0(piece), piece.any(1)
        heads = found.scale.half().view(-1, 1).view(torch.uint8)
        chosen = (found.has_grid & nonzero).numpy()
        blocks[first : first + len(piece)][chosen] = OF.pack(found.codes, heads).numpy()[chosen]
        kept, some = kept + int(chosen.sum()), some + int(nonzero.sum())
    blocks.flush()
    return OwnGrids(kept, some)
