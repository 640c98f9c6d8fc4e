"""The values of blocks, as llama.cpp's own functions unpack them.

Shape suffixes: P some of the rows, I in_features; here: B bytes.
"""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tunesmith.kernels.ggml import unpacker


def values_of(blocks_B: NDArray[np.uint8], kind: Type, columns: int) -> torch.Tensor:
    """The fp32 values of whole rows of blocks, shape (P, I)."""
    unpack = unpacker(kind.name)
    assert unpack is not None, f"llama.cpp unpacks no {kind.name}"
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values_PI = torch.empty((blocks_B.size // size * block // columns, columns))
    unpack(torch.from_numpy(blocks_B), values_PI)
    return values_PI
