"""llama.cpp's own functions that unpack blocks, where it is installed: the way of a CPU.

One pass in C instead of a dozen in torch: 0.2 to 1.1 ns a weight against 0.9 to 4.1 (one core, docs/LOG.md), where NF4 takes
0.9. The values are the same to the bit, and ``kernels/blocks.py`` is the specification. The shared object is that of the
package ``xllamacpp``, found without importing it.

Source: llama.cpp ``ggml/src/ggml-quants.h``, ``dequantize_row_*``.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tunesmith.kernels.llama_cpp import open_shared_object, shared_object

FUNCTIONS = {
    "Q4_0": "dequantize_row_q4_0",
    "Q4_1": "dequantize_row_q4_1",
    "Q5_0": "dequantize_row_q5_0",
    "Q5_1": "dequantize_row_q5_1",
    "Q8_0": "dequantize_row_q8_0",
    "Q3_K": "dequantize_row_q3_K",
    "Q4_K": "dequantize_row_q4_K",
    "Q5_K": "dequantize_row_q5_K",
    "Q6_K": "dequantize_row_q6_K",
    "IQ4_NL": "dequantize_row_iq4_nl",
    "IQ4_XS": "dequantize_row_iq4_xs",
}


@functools.cache
def _function(kind: str) -> Any:
    if shared_object() is None or kind not in FUNCTIONS:
        return None
    function = getattr(open_shared_object(), FUNCTIONS[kind], None)
    if function is not None:
        function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return function


def unpacker(kind: str) -> Callable[[Tensor, Tensor], None] | None:
    """What writes the fp32 values of some blocks; None where llama.cpp is not installed or has no such function.

    Args:
        kind: llama.cpp's name of a type.

    Returns:
        A function from blocks (contiguous, uint8) and their values (contiguous, fp32), both on the CPU.
    """
    function = _function(kind)
    if function is None:
        return None

    def unpack(blocks: Tensor, values: Tensor) -> None:
        assert blocks.is_contiguous() and values.is_contiguous()
        function(blocks.data_ptr(), values.data_ptr(), values.numel())

    return unpack
