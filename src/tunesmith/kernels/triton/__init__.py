"""The kernels again, in Triton: the same names as one folder up, for CUDA devices, and the only place that imports Triton.

Each function here has a specification in plain PyTorch, ``tunesmith.kernels.NAME``, which is also the CPU path and the
oracle of its tests. That file decides with one visible ``if x.is_cuda``; nothing is patched, registered or compiled
ahead, and no function falls back: what Triton can not do is an assertion here.

How they are written:

* Loads are taken to fp32, the arithmetic is fp32, and there is one rounding, at the store. fp64 is refused.
* A block that is a power of two covers a dimension that need not be: everything beyond it is masked.
* Rows may be strided, since q, k and v are views of one GEMM's output; the last dimension is contiguous.
* Row numbers are widened to int64 before they meet a stride: 262,144 tokens times 8,192 features pass 2^31.
* Block sizes are constants or powers of two that follow from the shape. Refused: autotuning, which measures on the
  user's machine for minutes, may choose differently in a resumed run, and so may add up in a different order.
* No atomics: two runs give the same bits.
* ``tanh`` is written as ``2 * sigmoid(2 z) - 1``, because libdevice is not there for Triton's interpreter.

Triton's interpreter (``TRITON_INTERPRET=1``, set before the import) runs all of them on a CPU, which is how the tests
hold them to the reference in fp32 and fp16 without a GPU. It truncates bf16, so bf16 is left to tests on a device.

Background: Tillet et al. 2019, "Triton: an intermediate language and compiler for tiled neural network computations".
"""
