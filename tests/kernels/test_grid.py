"""Weights rounded onto the grid of a file: what is trained is what the file holds."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.kernels.blocks import TYPES, Blocks, dequantize_blocks
from tunesmith.kernels.grid import blocks_on_grid, grid_of, round_to_grid

KINDS = [*TYPES, "F16"]


def _base(kind, weigh):
    torch.manual_seed(0)
    weight_OI = torch.distributions.StudentT(5.0).sample((40, 512)).float() * 0.02
    weight_OI[3], weight_OI[5, :256] = 0, 0
    importance = np.abs(np.random.default_rng(0).normal(size=512)).astype(np.float32) if weigh else None
    raw = weight_OI.half().view(torch.uint8) if kind == "F16" else None
    if raw is None:
        raw = torch.from_numpy(ggml().quantize(weight_OI.numpy(), Type[kind], importance)).view(40, -1)
    return weight_OI, Blocks(raw, kind, (40, 512))


@pytest.mark.parametrize("weigh", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_gives_the_file_and_a_trained_one_what_was_computed_with(kind, weigh):
    weight_OI, like = _base(kind, weigh)
    fresh, file = (dequantize_blocks(q, torch.float32) for q in (blocks_on_grid(weight_OI, None, None, 1.0, like), like))
    off = (fresh != file).float().mean()
    # Where llama.cpp chooses codes by a scale that is not rounded yet, a weight in a hundred lies nearer to its neighbour.
    assert off == 0 if kind in ("Q4_K", "Q5_K", "Q6_K", "F16") else off < 0.01
    assert ((fresh - weight_OI).abs() <= (file - weight_OI).abs() + 1e-9).all()
    A_RI, B_OR = torch.randn(4, 512) * 0.02, torch.randn(40, 4) * 0.02
    out_OI = round_to_grid(weight_OI, A_RI, B_OR, 2.0, grid_of(like), torch.empty(40, 512))
    blocks = blocks_on_grid(weight_OI, A_RI, B_OR, 2.0, like)
    assert torch.equal(dequantize_blocks(blocks, torch.float32), out_OI)
    assert (out_OI != fresh).any() and blocks.raw.shape == like.raw.shape
