import pytest
import torch

from tunesmith.kernels import nf4 as reference
from tunesmith.kernels.triton import nf4 as triton

# Rows of whole blocks, even rows that share blocks, odd rows that share bytes, one weight, more than one program.
SHAPES = [(17, 128), (5, 70), (7, 33), (1, 1), (40, 320)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def _quantized(rows, width):
    return reference.quantize_nf4(torch.randn(rows, width, generator=torch.Generator().manual_seed(rows * width)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [*SHAPES, (151, 257)])
def test_dequantised_bits_are_those_of_the_reference(rows, width, dtype, device):
    q = _quantized(rows, width)
    out = torch.full((rows, width), torch.nan, dtype=dtype, device=device)
    assert triton.dequantize_nf4(q.to(device), dtype, out) is out
    assert torch.equal(out.cpu(), reference.dequantize_nf4(q, dtype))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rows_are_written_apart_and_nothing_between_them(rows, width, device):
    q = _quantized(rows, width)
    wide = torch.full((rows, width + 21), torch.nan, dtype=torch.float16)
    for made in (triton.dequantize_nf4(q.to(device), torch.float16, wide.to(device)[:, 5 : width + 5]).cpu(),
                 reference.dequantize_nf4(q, torch.float16, wide.clone()[:, 5 : width + 5])):  # fmt: skip
        whole = made.as_strided(wide.shape, wide.stride(), 0)
        assert torch.equal(made, reference.dequantize_nf4(q, torch.float16))
        assert whole[:, :5].isnan().all() and whole[:, width + 5 :].isnan().all()


def test_three_dimensions(device):
    q = reference.quantize_nf4(torch.randn(2, 3, 90))
    expected = reference.dequantize_nf4(q, torch.float32)
    assert torch.equal(triton.dequantize_nf4(q.to(device), torch.float32).cpu(), expected)
    apart = torch.empty(2, 3, 112, device=device)[..., :90]
    assert torch.equal(triton.dequantize_nf4(q.to(device), torch.float32, apart).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("T", [1, 16, 37])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_product_is_that_of_the_reference(rows, width, T, dtype, device):
    torch.manual_seed(0)
    q = _quantized(rows, width)
    x = torch.randn(T, width + 5).to(dtype)[:, :width]
    y = triton.nf4_matmul(x.to(device), q.to(device))
    expected = x.double() @ reference.dequantize_nf4(q, dtype).double().T
    assert y.dtype == dtype
    torch.testing.assert_close(y.double().cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * width**0.5)
    torch.testing.assert_close(y.cpu(), reference.nf4_matmul(x, q), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * width**0.5)


@pytest.mark.parametrize("T", [2, 70])
@pytest.mark.parametrize(("rows", "width", "rank"), [(17, 128, 3), (7, 33, 16), (40, 64, 70)])
def test_product_with_an_adapter_is_rounded_once(rows, width, rank, T, device):
    torch.manual_seed(0)
    q, x = _quantized(rows, width), torch.randn(T, width).half()
    xA, B, bias = torch.randn(T, rank + 2).half()[:, 2:], torch.randn(rows, rank), torch.randn(rows).half()
    update = reference.Update(xA.to(device), B.to(device), 1e-3)
    out = torch.full((T, rows + 3), torch.nan, dtype=torch.float16, device=device)
    assert triton.nf4_matmul(x.to(device), q.to(device), update, bias.to(device), out=out[:, :rows]).shape == (T, rows)
    exact = x.double() @ reference.dequantize_nf4(q, torch.float16).double().T + bias.double()
    exact += 1e-3 * xA.double() @ B.half().double().T
    # Half a unit in the last place, and what fp32 adds to it: an update added after the rounding would be a whole one off.
    torch.testing.assert_close(out[:, :rows].double().cpu(), exact, rtol=2.0**-11 * 1.01, atol=2e-5)
    expected = reference.nf4_matmul(x, q, reference.Update(xA, B, 1e-3), bias)
    torch.testing.assert_close(out[:, :rows].cpu(), expected, rtol=2e-3, atol=2e-3)
    assert out[:, rows:].isnan().all()


def test_no_tokens_and_double_precision(device):
    q = _quantized(4, 64).to(device)
    assert triton.nf4_matmul(torch.ones(0, 64, device=device), q).shape == (0, 4)
    with pytest.raises(AssertionError):
        triton.nf4_matmul(torch.ones(1, 64, dtype=torch.float64, device=device), q)
    with pytest.raises(AssertionError):
        triton.dequantize_nf4(q, torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_bf16_on_the_device(rows, width):
    q = _quantized(rows, width)
    assert torch.equal(
        reference.dequantize_nf4(q.to("cuda"), torch.bfloat16).cpu(), reference.dequantize_nf4(q, torch.bfloat16)
    )
    x = torch.randn(5, width).bfloat16()
    expected = x.double() @ reference.dequantize_nf4(q, torch.bfloat16).double().T
    y = reference.nf4_matmul(x.cuda(), q.to("cuda")).cpu().double()
    near = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(y, expected, rtol=near, atol=near * width**0.5)


@pytest.mark.gpu
def test_codes_on_the_device_are_those_of_the_cpu():
    weight = torch.randn(70, 130)
    here, there = reference.quantize_nf4(weight), reference.quantize_nf4(weight.cuda())
    assert torch.equal(there.packed.cpu(), here.packed)
