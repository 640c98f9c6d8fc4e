import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tunesmith.kernels.rms_norm import add_rms_norm_forward, rms_norm, rms_norm_backward, rms_norm_forward

EPS = 1e-5
STOCK = {0.0: LlamaRMSNorm, 1.0: Gemma3RMSNorm}


def _stock(offset, D, dtype=torch.float32):
    module = STOCK[offset](D, eps=EPS).to(dtype)
    module.weight.data.normal_(1.0 - offset, 0.3)
    return module.requires_grad_(False)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 37), (3, 576), (2, 5, 3, 16)])
def test_equals_the_stock_layer_and_its_gradient(offset, shape):
    torch.manual_seed(0)
    module = _stock(offset, shape[-1])
    x = torch.randn(shape).mul_(3).requires_grad_()
    stock_x = x.detach().clone().requires_grad_()
    dy = torch.randn(shape)
    y = rms_norm(x, module.weight, EPS, offset)
    expected = module(stock_x)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, stock_x.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_one_rounding_from_the_exact_result(offset, dtype):
    torch.manual_seed(0)
    module = _stock(offset, 576, dtype)
    x, dy = torch.randn(5, 576).to(dtype), torch.randn(5, 576).to(dtype)
    y, rstd = rms_norm_forward(x, module.weight, EPS, offset)
    exact, exact_rstd = rms_norm_forward(x.double(), module.weight.double(), EPS, offset)
    half_ulp = torch.finfo(dtype).eps / 2
    assert y.dtype == dtype and rstd.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=half_ulp * 1.01, atol=1e-6)
    torch.testing.assert_close(y, module(x), rtol=4 * half_ulp, atol=1e-6)
    dx = rms_norm_backward(dy, x, module.weight, rstd, offset)
    exact_dx = rms_norm_backward(dy.double(), x.double(), module.weight.double(), exact_rstd, offset)
    torch.testing.assert_close(dx.double(), exact_dx, rtol=half_ulp * 1.01, atol=1e-6)


def test_gradcheck_in_double():
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, EPS, 1.0), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_rows_and_kept_inputs(dtype):
    wide = torch.randn(7, 3 * 37).to(dtype)
    x, dy, weight = wide[:, 37:74], wide[:, :37], torch.randn(37)
    before = wide.clone()
    y, rstd = rms_norm_forward(x, weight, EPS)
    # Sums of strided rows may be taken in another order.
    torch.testing.assert_close(y, rms_norm_forward(x.contiguous(), weight, EPS)[0])
    dx = rms_norm_backward(dy, x, weight, rstd)
    torch.testing.assert_close(dx, rms_norm_backward(dy.contiguous(), x.contiguous(), weight, rstd))
    assert torch.equal(wide, before)


def test_residual_sum_is_rounded_before_it_is_normalised():
    x, residual = torch.randn(4, 64).bfloat16(), torch.randn(4, 64).bfloat16()
    weight = torch.randn(64)
    total, y, rstd = add_rms_norm_forward(x, residual, weight, EPS, 1.0)
    assert torch.equal(total, x + residual)
    expected_y, expected_rstd = rms_norm_forward(x + residual, weight, EPS, 1.0)
    assert torch.equal(y, expected_y) and torch.equal(rstd, expected_rstd)


def test_no_more_than_the_input_and_a_number_a_row_is_saved():
    x = torch.randn(6, 32, requires_grad=True)
    weight, kept = torch.ones(32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, weight, EPS)
    own = [t for t in kept if t.data_ptr() not in (x.data_ptr(), weight.data_ptr())]
    assert [t.shape for t in own] == [(6,)]


def test_trainable_weight_is_refused():
    with pytest.raises(AssertionError, match="frozen"):
        rms_norm(torch.ones(1, 2), torch.ones(2, requires_grad=True), EPS)
