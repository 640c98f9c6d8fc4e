import pytest
import torch

from tunesmith.kernels.lora import lora_matmul as dispatched
from tunesmith.kernels.triton.lora import lora_matmul

# T, I, O, R: one token, nothing a multiple of a block, ranks below and above one block, several groups of tiles.
SIZES = [(1, 576, 37, 1), (3, 37, 130, 4), (129, 70, 65, 16), (1200, 16, 20, 80)]


def _operands(T, I, O, R, dtype, device):  # noqa: E741
    """Strided views beside NaNs, so that a load outside its row shows."""
    torch.manual_seed(0)
    made = [torch.randn(T, I), torch.randn(O, I) / I**0.5, torch.randn(T, R), torch.randn(O, R) / R**0.5]
    wide = [torch.cat((torch.full((len(t), 3), torch.nan), t, torch.full((len(t), 5), torch.nan)), 1) for t in made]
    return [t.to(dtype).to(device)[:, 3:-5] for t in wide], torch.randn(O).to(dtype).to(device)


def _exact(tensors, scale, bias):
    x, weight, xA, B = (t.double().cpu() for t in tensors)
    y = x @ weight.T + scale * (xA @ B.T)
    return y if bias is None else y + bias.double().cpu()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_exact_sum_rounded_once(sizes, with_bias, device):
    tensors, bias = _operands(*sizes, torch.float16, device)
    bias = bias if with_bias else None
    y = lora_matmul(*tensors, 0.75, bias)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double().cpu(), _exact(tensors, 0.75, bias), rtol=6e-4, atol=6e-4)


def test_writes_out_and_nothing_beside_it(device):
    tensors, bias = _operands(5, 24, 40, 4, torch.float16, device)
    room = torch.zeros(5, 60, dtype=torch.float16, device=device)
    out = room[:, 8:48]
    assert lora_matmul(*tensors, 2.0, bias, out) is out
    torch.testing.assert_close(out.double().cpu(), _exact(tensors, 2.0, bias), rtol=6e-4, atol=6e-4)
    assert not room[:, :8].any() and not room[:, 48:].any()


def test_an_update_below_half_an_ulp_survives_on_average(device):
    """In fp16: base products in [1, 2), an update of a tenth of an ulp."""
    T, I, O, scale, ulp = 64, 32, 64, 0.5, 2.0**-10  # noqa: E741
    torch.manual_seed(0)
    x = torch.cat((torch.ones(T, 1), torch.rand(T, I - 1) / I), 1).half().to(device)
    weight = torch.cat((torch.ones(O, 1), torch.rand(O, I - 1)), 1).half().to(device)
    xA, B = torch.ones(T, 1).half().to(device), torch.full((O, 1), 0.2 * ulp).half().to(device)
    gain = lora_matmul(x, weight, xA, B, scale).double() - lora_matmul(x, weight, xA, B * 0, scale).double()
    assert float(gain.mean()) == pytest.approx(0.1 * ulp, rel=0.15)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [*SIZES, (4096, 576, 1536, 16)])
def test_bf16_on_the_device_is_one_rounding_from_the_exact_result(sizes):
    tensors, bias = _operands(*sizes, torch.bfloat16, "cuda")
    y = dispatched(*tensors, 0.75, bias)
    torch.testing.assert_close(y.double().cpu(), _exact(tensors, 0.75, bias), rtol=2**-8 * 1.05, atol=1e-4)
