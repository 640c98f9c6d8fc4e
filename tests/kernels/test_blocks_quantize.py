"""Q8_0 against the gguf package, and 16 bits, from pieces of any size."""

import numpy as np
import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.kernels.blocks import dequantize_blocks
from tunesmith.kernels.blocks_quantize import quantize_blocks

gguf = pytest.importorskip("gguf")


def test_blocks_are_those_of_the_gguf_package_whatever_the_pieces():
    weight = torch.randn(12, 96, generator=torch.Generator().manual_seed(0))
    weight[3, 32:64] = 0
    found = quantize_blocks(weight.reshape(-1).split(100), "Q8_0", (12, 96), "cpu")
    assert np.array_equal(found.raw.numpy(), gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0))
    half = quantize_blocks(weight.reshape(-1).split(101), "BF16", (12, 96), "cpu")
    assert torch.equal(dequantize_blocks(half, torch.float32), weight.bfloat16().float())
    assert torch.equal(dequantize_blocks(found.rows(3, 5), torch.float32), dequantize_blocks(found, torch.float32)[3:5])


def test_what_is_not_finite_has_no_code():
    with pytest.raises(ModelError, match="NaN or infinity"):
        quantize_blocks([torch.tensor([[1.0, torch.inf]])], "BF16", (1, 2), "cpu")
