"""A tensor of a mapped file on its way to a GPU: piece by piece through pinned memory.

A copy out of a mapped file is pageable: the driver takes it through a small buffer of its own while the host waits, page faults
included. Here the host copies a piece into pinned memory, which is where the file is read, and queues the rest: the piece
crosses the bus and is quantised or cast while the host fills the next one. PyTorch's pinned allocator hands a buffer out
again when the copy out of it is done, so a few pieces are alive, however large the tensor.

Refused: a thread that reads ahead (the queue of the device does it already) and pinning the file's own pages
(``cudaHostRegister`` of a mapped file reads it whole).

Cost: pinned memory of a few pieces, 32 MB each in 16 bits, kept by the process. On a CPU it costs nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tunesmith.kernels.nf4 import QUANTIZE_PIECE_GPU
from tunesmith.kernels.upload import upload


def staged(tensor: Tensor, device: torch.device) -> Iterator[Tensor]:
    """The elements of a tensor of the host in their flat order: in flat pieces on a GPU, else as it is on ``device``."""
    if device.type != "cuda":
        yield tensor.to(device)
        return
    for piece in tensor.reshape(-1).split(QUANTIZE_PIECE_GPU):
        yield upload(piece, device)
