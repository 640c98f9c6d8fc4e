"""The grid that weights lie on already, found again through the rounding of a release."""

import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.kernels.blocks import TYPES
from tunesmith.kernels.own_grid import find_q4_0

N = 4096


def _release(largest):
    """Codes whose largest is so much, and the weights."""
    torch.manual_seed(largest)
    codes = torch.randint(-largest, min(largest, 7) + 1, (N, 32)).to(torch.int8)
    codes[torch.arange(N), torch.randint(32, (N,))] = -largest
    scale = (torch.rand(N) * 0.01 + 1e-3).half().float() * torch.randint(2, (N,)).mul(2).sub(1)
    return codes, codes * scale[:, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("largest", [8, 7, 5])
def test_codes_and_scales_come_back_and_the_quantiser_does_not_find_them(largest, dtype):
    codes, exact = _release(largest)
    weights = exact.to(dtype).float()
    found = find_q4_0(weights)
    assert found.has_grid.all()
    values = found.codes * found.scale[:, None]
    assert torch.equal(values.to(dtype).float(), weights)
    assert ((values - exact).abs().amax(1) <= (0.003 if dtype == torch.bfloat16 else 0) * exact.abs().amax(1)).all()
    sign_N1 = (found.codes.int() * codes).sum(1, keepdim=True).sign() if largest < 8 else 1  # which no weight tells
    assert torch.equal(found.codes * sign_N1, codes)
    of = TYPES["Q4_0"]
    blocks = torch.from_numpy(ggml().quantize(weights.numpy(), Type.Q4_0, None)).view(N, of.nbytes)
    plain = of.unpack(blocks) * of.grid(blocks).scale
    finds = (plain == exact).all(1).float().mean()
    assert finds < 0.5 if largest == 8 and dtype == torch.bfloat16 else finds == (largest == 8)


def test_weights_that_lie_on_none_have_none_and_zeros_have_any():
    weights = torch.randn(N, 32).bfloat16().float() * 0.02
    weights[0] = 0
    weights[1] = torch.tensor([0.5] + [0.0] * 31)
    found = find_q4_0(weights)
    assert found.has_grid.tolist() == [True, True] + [False] * (N - 2)
    assert torch.equal((found.codes * found.scale[:, None])[:2], weights[:2])
