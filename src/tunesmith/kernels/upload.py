"""A tensor of the host that goes to a GPU without anybody waiting.

A copy out of ordinary memory is pageable: the driver takes it through a buffer of its own while the host waits for all that
was queued before. Out of pinned memory it is queued like any other work, and PyTorch's pinned allocator hands the buffer out
again when the copy is done. What is large goes in pieces (``models/staging.py``).
"""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device: itself where it is there, through pinned memory where it goes from the host to a GPU."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
