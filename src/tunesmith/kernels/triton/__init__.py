"""The kernels again, in Triton: the same names as one folder up, for CUDA devices, and the only place that imports Triton.

Each function here has a specification in plain PyTorch, ``tunesmith.kernels.NAME``, which is also the CPU path and the
oracle of its tests. That file decides with one visible ``if x.is_cuda: return on_gpu.NAME(...)``; nothing is patched,
registered or compiled ahead, and no function falls back: what Triton can not do is an assertion here.

A machine without a GPU has no Triton, so a file of this folder is imported when the first of its functions is asked for
(``__getattr__`` below), and this file imports nothing. Refused: an import where it is used, in ten functions of six files.

How they are written:

* Loads are taken to fp32, the arithmetic is fp32, and there is one rounding, at the store. fp64 is refused.
* A block that is a power of two covers a dimension that need not be: everything beyond it is masked.
* Rows may be strided, since q, k and v are views of one GEMM's output; the last dimension is contiguous.
* Row numbers are widened to int64 before they meet a stride: 262,144 tokens times 8,192 features pass 2^31.
* Block sizes are constants or powers of two that follow from the shape. Refused: autotuning, which measures on the
  user's machine for minutes, may choose differently in a resumed run, and so may add up in a different order.
* No atomics: two runs give the same bits. (PyTorch's attention has some in its backward pass, unless ``train.deterministic``.)
* ``tanh`` is written as ``2 * sigmoid(2 z) - 1``, because libdevice is not there for Triton's interpreter.

Triton's interpreter (``TRITON_INTERPRET=1``, set before the import) runs all of them on a CPU, which is how the tests
hold them to the reference in fp32 and fp16 without a GPU. It truncates bf16, so bf16 is left to tests on a device.

Background: Tillet et al. 2019, "Triton: an intermediate language and compiler for tiled neural network computations".
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    from tunesmith.kernels.triton.adapter import adapter_gradients, add_update_, project
    from tunesmith.kernels.triton.augmented import fill_augmented_
    from tunesmith.kernels.triton.blocks import dequantize_blocks
    from tunesmith.kernels.triton.cross_entropy import cross_entropy_rows_
    from tunesmith.kernels.triton.dropout import drop_seeded
    from tunesmith.kernels.triton.glu import glu_backward, glu_forward
    from tunesmith.kernels.triton.lora import lora_matmul
    from tunesmith.kernels.triton.nf4 import dequantize_nf4, nf4_matmul
    from tunesmith.kernels.triton.rms_norm import add_rms_norm_forward, rms_norm_backward, rms_norm_forward
    from tunesmith.kernels.triton.rope import rope_

__all__ = [
    "AuxRequest",
    "adapter_gradients",
    "add_rms_norm_forward",
    "add_update_",
    "cross_entropy_rows_",
    "dequantize_blocks",
    "dequantize_nf4",
    "drop_seeded",
    "fill_augmented_",
    "glu_backward",
    "glu_forward",
    "lora_matmul",
    "nf4_matmul",
    "project",
    "rms_norm_backward",
    "rms_norm_forward",
    "rope_",
    "varlen_attn",
]

_HOME = {
    "adapter_gradients": f"{__name__}.adapter",
    "add_update_": f"{__name__}.adapter",
    "project": f"{__name__}.adapter",
    "fill_augmented_": f"{__name__}.augmented",
    "cross_entropy_rows_": f"{__name__}.cross_entropy",
    "drop_seeded": f"{__name__}.dropout",
    "glu_backward": f"{__name__}.glu",
    "glu_forward": f"{__name__}.glu",
    "lora_matmul": f"{__name__}.lora",
    "dequantize_blocks": f"{__name__}.blocks",
    "dequantize_nf4": f"{__name__}.nf4",
    "nf4_matmul": f"{__name__}.nf4",
    "add_rms_norm_forward": f"{__name__}.rms_norm",
    "rms_norm_backward": f"{__name__}.rms_norm",
    "rms_norm_forward": f"{__name__}.rms_norm",
    "rope_": f"{__name__}.rope",
    "AuxRequest": "torch.nn.attention.varlen",
    "varlen_attn": "torch.nn.attention.varlen",  # no kernel of ours; 1.6 s to import
}


def __getattr__(name: str) -> Any:
    """A kernel, its file imported when it is first asked for (PEP 562).

    Raises:
        AttributeError: no such kernel.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    kernel = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = kernel
    return kernel
