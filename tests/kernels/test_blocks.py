"""Blocks of GGUF files against llama.cpp's own quantiser and its package's readers."""

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.kernels import blocks as kernel
from tunesmith.kernels.blocks import TYPES, Blocks, dequantize_blocks, row_bytes, values_of
from tunesmith.kernels.triton import blocks as triton


def _blocks(kind, rows=9, columns=768):
    """Weights with heavy tails, a row and a block of zeros, in llama.cpp's own blocks."""
    torch.manual_seed(rows)
    weight_OI = torch.distributions.StudentT(5.0).sample((rows, columns)).float() * 0.02
    weight_OI[3], weight_OI[4, :256] = 0, 0
    raw = ggml().quantize(weight_OI.numpy(), Type[kind], None)
    return Blocks(torch.from_numpy(raw).view(rows, -1), kind, (rows, columns))


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_llama_cpps_to_the_bit_with_it_and_without(kind, monkeypatch):
    q = _blocks(kind)
    assert q.raw.shape[1] == row_bytes(kind, 768)
    expected = torch.from_numpy(gguf.quants.dequantize(q.raw.numpy(), Type[kind]))
    for installed in (True, False):
        if not installed:
            monkeypatch.setattr(kernel, "unpacker", lambda kind: None)
        assert torch.equal(dequantize_blocks(q, torch.float32), expected)
        apart = torch.full((9, 800), torch.nan, dtype=torch.bfloat16)
        dequantize_blocks(q, torch.bfloat16, apart[:, 16:784])
        assert torch.equal(apart[:, 16:784], expected.bfloat16()) and apart[:, :16].isnan().all()


@pytest.mark.parametrize("kind", TYPES)
def test_codes_on_a_grid_make_the_block_again(kind):
    q, of = _blocks(kind), TYPES[kind]
    blocks = q.raw.view(-1, of.nbytes)
    codes = of.unpack(blocks).clone()
    assert int(codes.min()) >= of.low and int(codes.max()) <= of.high
    assert torch.equal(of.pack(codes, blocks), blocks)
    other = torch.randint(of.low, of.high + 1, codes.shape, dtype=torch.int8)
    packed = of.pack(other, blocks)
    assert torch.equal(of.unpack(packed), other)
    values = values_of(of, other, of.grid(blocks))
    assert torch.equal(values.view(9, 768), dequantize_blocks(q._replace(raw=packed.view(9, -1)), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", TYPES)
def test_triton_writes_the_same_bits_beside_what_stands_there(kind, dtype, device):
    q = _blocks(kind)
    wide = torch.full((9, 800), torch.nan, dtype=dtype, device=device)
    triton.dequantize_blocks(q.to(device), wide[:, 16:784])
    assert torch.equal(wide[:, 16:784].cpu(), dequantize_blocks(q, dtype))
    assert wide[:, :16].isnan().all() and wide[:, 784:].isnan().all()
