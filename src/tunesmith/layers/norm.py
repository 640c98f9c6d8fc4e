"""RMS norm with a hand-written gradient; its weight is frozen.

Stock modules leave five tensors of the input's size to autograd; this one keeps the input, which the residual stream
holds anyway, and one number a token. Where a norm stands before attention or an MLP of ours, those take it in and no
module is left (``layers/lora.py``).

Source: Zhang and Sennrich 2019 (root mean square layer normalization).

Shape suffixes: I in_features (what is normalised).
"""

from torch import Tensor, nn

from tunesmith.kernels.rms_norm import rms_norm
from tunesmith.layers.lora import Norm


class FusedRMSNorm(nn.Module):
    """``x / rms(x) * (offset + weight)`` over the last dimension, in the dtype of x."""

    def __init__(self, norm: Norm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., D) to (..., D)."""
        return rms_norm(x, self.norm.weight_I, self.norm.eps, self.norm.offset)
