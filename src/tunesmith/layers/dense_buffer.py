"""The one buffer that quantised weights become dense in.

The dense weight goes to a buffer that all layers of the process share, one a device and dtype, as large as the largest weight
met so far (on a GPU, the weights of a group side by side: ``layers/lora.py``). A product is done before the next weight is
made, so one is enough, and the allocator neither fragments nor meets the kernel's page faults: a fresh 3.5 MB tensor costs as
much as its dequantisation. Two threads that train at once would overwrite each other; train in processes. Refused: keeping the
dense weights of a layer from forward to backward, which is what gives memory away.
"""

import torch
from torch import Tensor


class SharedBuffer:
    """Memory that all layers of the process write to in turn, one run of elements a device and dtype."""

    def __init__(self) -> None:
        self.runs: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def first(self, device: torch.device, dtype: torch.dtype, count: int) -> Tensor:
        """The first ``count`` elements; the run grows when it is too small."""
        key = (device, dtype)
        if key not in self.runs or self.runs[key].numel() < count:
            self.runs.pop(key, None)
            with torch.inference_mode(False):  # a buffer born in inference mode could not be written outside of it
                self.runs[key] = torch.empty(count, dtype=dtype, device=device)
        return self.runs[key][:count]


DENSE = SharedBuffer()  # of dequantised weights
