import pytest
import torch

from tunesmith.kernels.lora import lora_matmul


def operands(T, I, O, R, dtype, bias=False, seed=0):  # noqa: E741
    torch.manual_seed(seed)
    made = [torch.randn(T, I), torch.randn(O, I) / I**0.5, torch.randn(T, R), torch.randn(O, R) / R**0.5]
    return [t.to(dtype) for t in made], torch.randn(O).to(dtype) if bias else None


def oracle(tensors, scale, bias):
    x, weight, xA, B = (t.double() for t in tensors)
    y = x @ weight.T + scale * (xA @ B.T)
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(1, 37, 5, 1), (3, 576, 37, 8), (33, 64, 48, 16)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
)
def test_equals_the_exact_sum(bias, sizes, dtype, tolerance):
    tensors, bias_O = operands(*sizes, dtype, bias)
    y = lora_matmul(*tensors, 0.75, bias_O)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), oracle(tensors, 0.75, bias_O), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_rows_and_out(dtype):
    tensors, bias = operands(5, 24, 8, 4, dtype, True)
    strided = [torch.cat((t, torch.full_like(t, torch.nan)), 1)[:, : t.shape[1]] for t in tensors]
    room = torch.zeros(5, 24, dtype=dtype)
    out = room[:, 8:16]
    y = lora_matmul(*strided, 2.0, bias, out=out)
    assert y.data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, lora_matmul(*tensors, 2.0, bias))
    assert not room[:, :8].any() and not room[:, 16:].any()


def lost_and_kept(matmul):
    """Mean of ``y(update) - y(no update)`` over many elements, as a share of the update, in two orders of rounding.

    Every base product lies in [1, 2), where half a bf16 ulp is 2^-8; the update is a tenth of an ulp.
    """
    torch.manual_seed(0)
    T, I, O = 64, 32, 64  # noqa: E741
    x = torch.cat((torch.ones(T, 1), torch.rand(T, I - 1) / I), 1).bfloat16()
    weight = torch.cat((torch.ones(O, 1), torch.rand(O, I - 1)), 1).bfloat16()
    xA, B, scale = torch.ones(T, 1).bfloat16(), torch.full((O, 1), 2.0**-10).bfloat16(), 0.75
    update = scale * 2.0**-10
    exact = x.double() @ weight.double().T
    assert exact.min() >= 1 and exact.max() + update < 2
    base = matmul(x, weight, xA, torch.zeros_like(B), scale).double()
    kept = (matmul(x, weight, xA, B, scale).double() - base).mean() / update
    lost = (((x @ weight.T) + scale * (xA @ B.T)).double() - (x @ weight.T).double()).mean() / update
    return float(lost), float(kept)


def test_an_update_below_half_an_ulp_survives_on_average():
    lost, kept = lost_and_kept(lora_matmul)
    assert lost == 0.0
    assert kept == pytest.approx(1.0, abs=0.15)


def test_mixed_dtypes_are_refused():
    (x, weight, xA, B), _ = operands(2, 4, 4, 2, torch.float32)
    with pytest.raises(AssertionError):
        lora_matmul(x, weight, xA.bfloat16(), B, 1.0)
