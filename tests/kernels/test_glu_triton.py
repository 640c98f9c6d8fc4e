import pytest
import torch

from tunesmith.kernels import glu as reference
from tunesmith.kernels.glu import ACTIVATIONS
from tunesmith.kernels.triton.glu import BLOCK, glu_backward, glu_forward

TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3}
SHAPES = [(1, 576), (3, 37), (4, BLOCK), (2, BLOCK + 1)]


def _three(results):
    """h, dgate, dup."""
    return results[0], *results[1].chunk(2, dim=1)


def _operands(T, F, dtype, device):
    """dh, gate and up in three strided views."""
    torch.manual_seed(0)
    both = torch.randn(T, 2 * F + 5).to(dtype).to(device)
    return torch.randn(T, F + 1).to(dtype).to(device)[:, :F], both[:, :F], both[:, F : 2 * F]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("T", "F"), SHAPES)
def test_equals_the_reference(T, F, dtype, activation, device):
    dh, gate, up = _operands(T, F, dtype, device)
    dh_, gate_, up_ = (t.double().cpu() for t in (dh, gate, up))
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    h = glu_forward(gate, up, activation, torch.empty_like(gate))
    assert h.dtype == dtype
    torch.testing.assert_close(h.double().cpu(), reference.glu_forward(gate_, up_, activation), **near)
    results = _three(glu_backward(dh, gate, up, activation))
    assert results[0].data_ptr() == dh.data_ptr()
    for result, wanted in zip(results, _three(reference.glu_backward(dh_, gate_, up_, activation)), strict=True):
        torch.testing.assert_close(result.double().cpu(), wanted, **near)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's numpy; 1 / (1 + inf) is the point
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_gates_stay_finite(activation, device):
    gate = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4]], device=device)
    h, dgate, _ = _three(glu_backward(torch.ones_like(gate), gate, torch.ones_like(gate), activation))
    torch.testing.assert_close(h.cpu(), torch.tensor([[0.0, 0.0, 0.0, 90.0, 1e4]]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dgate.cpu(), torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("T", "F"), SHAPES)
def test_bf16_on_the_device_is_one_rounding_from_the_exact_result(T, F, activation):
    operands = _operands(T, F, torch.bfloat16, "cuda")
    expected = _three(reference.glu_backward(*(t.double().cpu() for t in operands), activation))
    h = reference.glu_forward(operands[1], operands[2], activation)
    torch.testing.assert_close(h.double().cpu(), expected[0], rtol=2**-8 * 1.01, atol=1e-5)
    for result, exact in zip(_three(reference.glu_backward(*operands, activation)), expected, strict=True):
        torch.testing.assert_close(result.double().cpu(), exact, rtol=2**-8 * 1.01, atol=1e-5)
